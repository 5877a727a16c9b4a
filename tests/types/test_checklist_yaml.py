"""Checklists as files: every key, the line of every error, libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.checks import load_functions
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item, ItemModel
from cm2_agent.types.checklist_library import shipped_libraries
from cm2_agent.types.checklist_yaml import load_checklist, read_checklist
from cm2_agent.types.task import Task
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, turn

ROOT = Path(__file__).resolve().parents[2]

FULL = """\
name: support
version: 3
include: [cm2:tool-hygiene]
items:
  - id: looks_up_first
    check: looks_up_first
    turn: 0
    required_for_next_turn: true
  - id: cancelled
    check: {called: cancel_order, with: {order_id: {from: user}}}
    turn: 1
  - id: tells_date
    turn: 0
    question: Does the reply give the delivery date that get_order returned?
    pass_condition: The date equals the tool result's.
    failure_examples: [No date, Another date]
    focus_on: assistant.reply
    kind: reach
    depends_on: [looks_up_first]
    weight: 2
    facet: context
    level: action
    part_of: null
    evidence: [{turn: 0, step: 1, from: tool.content, snippet: "2026-05-20"}]
    agent: null
  - id: refused
    check: {reply_matches: cannot}
    turn: 1
    when: Is the order shipped already?
    otherwise: paid
    depends_on: [{item: cancelled, soft: 0.5}]
  - id: settled
    any_of: [cancelled, refused]
    turn: 1
    when: {user_matches: cancel}
"""


def looks_up_first(view: View) -> bool:
    return view.called("get_order", before="reply")


def test_every_key_is_read() -> None:
    got = read_checklist(FULL, {"looks_up_first": looks_up_first})
    assert (got.name, got.version) == ("support", 3)
    assert [item.id for item in got][-5:-2] == ["looks_up_first", "cancelled", "tells_date"]
    want = Item(
        "tells_date",
        "Does the reply give the delivery date that get_order returned?",
        turn=0,
        weight=2,
        focus_on="assistant.reply",
        depends_on=["looks_up_first"],
        pass_condition="The date equals the tool result's.",
        failure_examples=["No date", "Another date"],
        facet="context",
        level="action",
        evidence=[{"turn": 0, "step": 1, "from": "tool.content", "snippet": "2026-05-20"}],
    )
    assert got.by_id["tells_date"] == want
    assert got.by_id["looks_up_first"].check is looks_up_first
    assert got.by_id["refused"] == Item(
        "refused",
        check={"reply_matches": "cannot"},
        turn=1,
        when="Is the order shipped already?",
        otherwise="paid",
        depends_on=[{"item": "cancelled", "soft": 0.5}],
    )
    assert got.by_id["settled"] == Item(
        "settled", any_of=["cancelled", "refused"], turn=1, when={"user_matches": "cancel"}
    )
    keys = set(FULL.replace(":", " ").replace("-", " ").split())
    assert set(ItemModel.model_fields) <= keys, "the example has every key"


def test_a_file_in_python_and_in_yaml_has_one_hash(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(FULL, encoding="utf-8")
    got = load_checklist(path)
    assert got.hash == Checklist(*got.items, name="support", version=3).hash
    assert load_checklist(str(path), {"looks_up_first": looks_up_first}).hash != got.hash, "a function's source counts"


# -- errors, with their lines

BROKEN: dict[str, tuple[str, int, str]] = {
    "unknown top key": (FULL + "owner: me\n", 36, "unknown key 'owner'; expected one of name, version, include, items"),
    "unknown item key": (
        FULL.replace("    weight: 2", "    wieght: 2"),
        20,
        "unknown key 'wieght'; expected one of id, question, check",
    ),
    "unknown evidence key": (
        FULL.replace("snippet:", "snipet: x, snippet:"),
        24,
        "unknown key 'snipet'; expected one of turn, step, from",
    ),
    "wrong type": (FULL.replace("weight: 2", "weight: heavy"), 20, "weight"),
    "text for a number": (FULL.replace("version: 3", 'version: "3"'), 2, "version"),
    "true for a turn": (FULL.replace("turn: 1", "turn: true"), 11, "turn"),
    "yes for true": (
        FULL.replace("required_for_next_turn: true", "required_for_next_turn: yes"),
        8,
        "required_for_next_turn",
    ),
    "unknown word": (FULL.replace("facet: context", "facet: vibes"), 21, "facet"),
    "bad id": (FULL.replace("id: cancelled", "id: can celled"), 9, "id"),
    "negative turn": (FULL.replace("turn: 1", "turn: -1"), 9, "turn is -1"),
    "negative weight": (FULL.replace("weight: 2", "weight: -2"), 20, "greater than or equal to 0"),
    "infinite weight": (FULL.replace("weight: 2", "weight: 1e999"), 20, "cannot be read"),
    "missing id": (FULL.replace("  - id: cancelled\n    check", "  - check"), 9, "items.1.id is missing"),
    "missing name": (FULL.replace("name: support\n", ""), 1, "name is missing"),
    "neither question nor check": (
        "name: a\nitems:\n- id: x\n- {id: y, question: q}\n",
        3,
        "neither a question nor a check",
    ),
    "missing dependency": (
        FULL.replace("[looks_up_first]", "[looks_up_frist]"),
        19,
        "'looks_up_frist', which does not exist",
    ),
    "dependency out of scope": (
        FULL.replace("turn: 1", "turn: 1\n    depends_on: [looks_up_first]", 1),
        12,
        "(turn 1) depends on",
    ),
    "duplicate id": (FULL.replace("id: cancelled", "id: looks_up_first"), 9, "is there twice"),
    "unknown check": (FULL.replace("called:", "caled:"), 10, "none of the known checks"),
    "unknown key of a soft dependency": (
        FULL.replace("soft: 0.5", "sotf: 0.5"),
        31,
        "unknown key 'sotf'; expected one of item, soft",
    ),
    "a soft dependency of all": (
        FULL.replace("soft: 0.5", "soft: 1"),
        31,
        "depends_on.0.soft: Input should be less than 1",
    ),
    "neither id nor soft dependency": (
        FULL.replace("{item: cancelled, soft: 0.5}", "5"),
        31,
        "depends_on.0: Input should be",
    ),
    "unknown check of when": (
        FULL.replace("{user_matches: cancel}", "{user_match: cancel}"),
        35,
        "item 'settled': when: the check",
    ),
    "otherwise without when": (
        FULL.replace("when: {user_matches: cancel}", "otherwise: paid"),
        32,
        "nothing can find that the item does not apply",
    ),
    "unknown check key": (FULL.replace("with:", "wiht:"), 10, "unknown key 'wiht'"),
    "kind on ends-decided": (
        "name: a\nitems:\n- id: x\n  check: {at_most: 3}\n  kind: hold\n",
        3,
        "leave the kind out",
    ),
    "weightless": ("name: a\nitems:\n- id: x\n  question: q\n  weight: 0\n", 5, "only items of weight 0"),
    "no items": ("name: a\nversion: 1\nitems: []\n", 3, "no items"),
    "duplicate key": (
        FULL.replace("    weight: 2", "    weight: 2\n    weight: 3"),
        21,
        "'weight' is there twice (first on line 20)",
    ),
    "key that is a list": ("name: a\n? [b, c]\n: d\n", 2, "a key is a list"),
    "tab": ("name: a\nitems:\n\t- id: x\n", 3, "indent with spaces"),
    "not YAML": ("name: a\nitems: [\n  {id: x\n", 4, "not YAML"),
    "two documents": ("name: a\n---\nname: b\n", 2, "a second document"),
    "empty": ("", 1, "is empty"),
    "a list": ("- a\n- b\n", 1, "holds a list; expected a mapping"),
    "a Python tag": ("name: a\nitems: !!python/object/apply:os.system [echo]\n", 2, "is not allowed"),
    "another tag": ("name: !secret a\n", 1, "is not allowed"),
    "control character": ("name: a\x00b\n", 1, "is not allowed in YAML"),
    "merge key": ("name: a\nitems:\n- &x {id: x, question: q}\n- {<<: *x, id: y}\n", 4, "unknown key '<<'"),
    "alias in itself": ("name: a\nitems: &x [*x]\n", 2, "nested deeper"),
    "include of nothing": (FULL.replace("cm2:tool-hygiene", "cm2:tool-hygene"), 3, "shipped are cm2:confirmation-b"),
    "include of two": (FULL.replace("[cm2:tool-hygiene]", "[{cm2:tool-hygiene: {}, b: {}}]"), 3, "one entry"),
    "unknown parameter": (
        FULL.replace("[cm2:tool-hygiene]", "[{cm2:tool-hygiene: {calls: 3}}]"),
        3,
        "no parameter calls; expected",
    ),
    "local without a file": (FULL.replace("cm2:tool-hygiene", "./own.yaml"), 3, "no file it could be relative to"),
}


@pytest.mark.parametrize(("text", "line", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_every_error_names_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ChecklistError) as caught:
        read_checklist(text, name="support.yaml")
    lines = str(caught.value).splitlines()
    assert any(one.startswith(f"support.yaml:{line}: ") and words in one for one in lines), str(caught.value)


def test_all_errors_of_a_file_are_told_at_once() -> None:
    with pytest.raises(ChecklistError) as caught:
        read_checklist(FULL.replace("facet: context", "facet: vibes").replace("turn: 1", "tunr: 1", 1), name="s")
    assert [one.split(":")[1] for one in str(caught.value).splitlines()] == ["11", "21"]


def test_a_bomb_of_aliases_is_refused_quickly() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    with pytest.raises(ChecklistError, match="once its aliases are written out"):
        read_checklist(bomb)
    with pytest.raises(ChecklistError, match="nested deeper"):
        read_checklist("name: " + "[" * 5000)
    with pytest.raises(ChecklistError, match="larger than"):
        read_checklist("name: " + "x" * (1 << 21))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: a\nitems:\n- {id: x, question: caf\xe9}\n")
    with pytest.raises(ChecklistError, match=r"latin.yaml:3: byte 0xe9 is not UTF-8"):
        load_checklist(latin)
    with pytest.raises(ChecklistError, match=r"gone.yaml:1: cannot be read: No such file"):
        load_checklist(tmp_path / "gone.yaml")
    with pytest.raises(ChecklistError, match=r":1: cannot be read: Is a directory"):
        load_checklist(tmp_path)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ChecklistError, match="larger than"):
        load_checklist(huge)
    marked = tmp_path / "bom.yaml"
    marked.write_bytes(b"\xef\xbb\xbfname: a\nitems: [{id: x, question: q}]\n")
    assert load_checklist(marked).name == "a"


def test_yaml_reads_words_as_words() -> None:
    wanted = "{a: 007, b: 1:30, c: 2026-05-20, d: 7, e: 1.5, g: true, h: ~}"
    got = read_checklist(f"name: no\nitems:\n- {{id: x, question: on, check: {{called: f, with: {wanted}}}}}\n")
    check = got.items[0].check
    assert isinstance(check, dict)
    assert (got.name, got.items[0].question) == ("no", "on")
    assert check["with"] == {"a": "007", "b": "1:30", "c": "2026-05-20", "d": 7, "e": 1.5, "g": True, "h": None}


def test_a_when_name_needs_its_function_too() -> None:
    text = "name: a\nitems:\n- id: x\n  question: q\n  when: shipped\n"
    assert read_checklist(text).items[0].named_functions == {"when": "shipped"}
    with pytest.raises(ChecklistError, match="checklist:5: item 'x': when is 'shipped', which is no check function"):
        read_checklist(text, {})
    found = read_checklist(text, {"shipped": looks_up_first})
    assert found.items[0].when is looks_up_first
    assert found.hash != read_checklist(text).hash, "a function's source counts"


def test_a_check_name_needs_its_function_once_functions_are_given() -> None:
    assert read_checklist(FULL).by_id["looks_up_first"].check == "looks_up_first"
    with pytest.raises(ChecklistError, match=r"s.yaml:6: .*'looks_up_first'.*\(other\)"):
        read_checklist(FULL, {"other": looks_up_first}, name="s.yaml")


def test_yaml_imports_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    (tmp_path / "s.yaml").write_text("name: a\nitems: [{id: x, check: evil}]\n", encoding="utf-8")
    assert load_checklist(tmp_path / "s.yaml").items[0].check == "evil"
    with pytest.raises(SystemExit):
        load_functions(tmp_path / "evil.py")


# -- libraries

LIBRARY = """\
name: lib
parameters: {tool: null, most: 3, text: hello}
items:
  - id: lib.called
    check: {called: "${tool}"}
  - id: lib.few
    check: {at_most: "${most}"}
  - id: lib.greets
    question: ${text}
"""


IN_B = "name: a\ninclude: [b.yaml]\n"


def project(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "main.yaml"


def test_a_local_library_with_parameters(tmp_path: Path) -> None:
    main = project(
        tmp_path, main="name: a\ninclude:\n- {libs/lib.yaml: {tool: get_order, most: 5}}\n", libs__lib=LIBRARY
    )
    got = load_checklist(main)
    assert [item.check for item in got] == [{"called": "get_order"}, {"at_most": 5}, None]
    assert got.by_id["lib.greets"].question == "hello"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"main": "name: a\ninclude: [lib.yaml]\n", "lib": LIBRARY},
            r"main.yaml:2: lib.yaml needs the parameter tool; write \{lib",
        ),
        ({"main": "name: a\ninclude: [gone.yaml]\n"}, r"main.yaml:2: cannot include: .*gone.yaml:1: cannot be read"),
        ({"main": "name: a\ninclude: [../x.yaml]\n"}, "main.yaml:2: .*outside the checklist's folder"),
        ({"main": "name: a\ninclude: [/etc/passwd]\n"}, "main.yaml:2: .*outside the checklist's folder"),
        ({"main": IN_B, "b": "name: b\ninclude: [main.yaml]\n"}, "b.yaml:2: .*circle: main.yaml → b.yaml → main.yaml"),
        ({"main": "name: a\ninclude: [main.yaml]\n"}, "main.yaml:2: .*circle"),
        ({"main": IN_B, "b": "name: b\nitems:\n- id: x\n  chek: y\n"}, "b.yaml:4: unknown key 'chek'"),
        ({"main": IN_B, "b": "name: b\nitems:\n- id: x\n  question: q\n  depends_on: [y]\n"}, "b.yaml:5: .*'y', which"),
        (
            {"main": IN_B, "b": "name: b\nparameters: {n: 1}\nitems:\n- id: ${m}\n"},
            r"b.yaml:4: \$\{m\} is not a parameter",
        ),
        (
            {
                "main": "name: a\ninclude: [{b.yaml: {n: many}}]\n",
                "b": "name: b\nparameters: {n: 1}\nitems:\n- {id: x, check: {at_most: '${n}'}}\n",
            },
            "b.yaml:4: .*at_most",
        ),
        ({"main": "name: a\nparameters: {n: 1}\nitems: []\n"}, "main.yaml:2: unknown key 'parameters'"),
        (
            {"main": IN_B + "items:\n- {id: x, question: q}\n", "b": "name: b\nitems:\n- {id: x, question: q}\n"},
            "main.yaml:4: .*'x' is there twice",
        ),
    ],
)
def test_libraries_that_will_not_do(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(ChecklistError, match=words):
        load_checklist(project(tmp_path, **files))


def test_a_link_out_of_the_folder_is_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("name: s\nitems: [{id: s, question: q}]\n", encoding="utf-8")
    main = project(tmp_path / "mine", main="name: a\ninclude: [link.yaml]\n")
    (main.parent / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(ChecklistError, match="outside the checklist's folder"):
        load_checklist(main)


def test_the_shipped_library_scores_a_dialogue() -> None:
    assert "tool-hygiene" in shipped_libraries()
    strict = read_checklist(
        "name: a\ninclude: [{cm2:tool-hygiene: {max_calls: 1, weight: 2}}]\nitems: [{id: x, check: {called: x}}]\n"
    )
    assert [item.weight for item in strict] == [2, 2, 2, 1]
    clean = trace(turn("Hi", call("x"), say("Here")))
    messy = trace(turn("Hi", call("x", error=True), call("x")))
    assert ChecklistScorer(strict).score_sync(clean).reward == 1.0
    left = ChecklistScorer(strict).score_sync(messy)  # nothing is said, so two of its items do not apply
    assert left.reward == pytest.approx(1 / 3)
    assert left.lower == pytest.approx(1 / 7)


def test_a_task_includes_shipped_libraries_alone() -> None:
    def task(include: str) -> Task:
        return Task.model_validate(
            {"id": "t", "turns": ["x"], "checklist": {"name": "own", "include": [include], "items": []}}
        )

    own = task("cm2:tool-hygiene").own_checklist()
    assert own is not None
    assert len(own.items) == 3
    with pytest.raises(ChecklistError, match=r"checklist 'own'.*no file it could be relative to"):
        task("./lib.yaml").own_checklist()
