"""Three fixed traces, their checklists and scorers, and what comes of them: versions, hashes, JSON, rows of a store.

Attribute names are spelled out and checks are data, so that nothing here hangs on where the code lies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from tempfile import TemporaryDirectory
from typing import Any

import cm2_agent
from cm2_agent import Checklist, Item, LLMJudge, Run, Score, SQLStore, Stack, Task, Trace
from cm2_agent.cli.app import app
from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.graphs.users import LLMUser, ScriptedUser
from cm2_agent.importers import FORMATS
from cm2_agent.rewards.authoring.prompt import prompt_version
from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.penalties import length_penalty
from cm2_agent.rewards.components.relative import relative
from cm2_agent.rewards.components.stack import add, gate, multiply, penalty
from cm2_agent.rewards.judges.panel import Cascade, Panel
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist_item import ChecklistModel
from cm2_agent.types.checklist_yaml import dump_checklist, load_checklist
from cm2_agent.types.human_labels import Label
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Blob, Message, Other, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec, Uri
from cm2_agent.types.run import ModelCall, RunFailure, ToolRun
from cm2_agent.types.task import Persona, RecordedCall
from tests.cli_runner import CliRunner

WALL_CLOCK = {"stored", "first", "last"}
"""Columns that hold the time of writing."""
GET_ORDER = ToolSpec(
    name="get_order",
    description="An order's state.",
    parameters={"type": "object", "properties": {"order_id": {"type": "integer"}}, "required": ["order_id"]},
)
ORDER_7 = Message.of("user", "Where is order 7?")
LOOKS = Message(
    role="assistant",
    parts=(
        Reasoning(content="First the order."),
        Text(content="One moment — ich schaue nach…"),
        ToolCall(id="c1", name="get_order", arguments={"order_id": 7}),
        ToolCall(id="c2", name="get_order", arguments="{broken"),
    ),
    finish_reason="tool_calls",
    extra={"note": "as it came"},
)
FOUND = Message(
    role="tool",
    parts=(
        ToolCallResponse(id="c1", response={"status": "shipped", "date": "2026-05-20"}),
        ToolCallResponse(id="c2", response="Error: not JSON\x00", error=True),
    ),
)
TELLS = Message.of("assistant", "Order 7 was shipped and comes on 2026-05-20.")
PICTURES = Message(
    role="user",
    name="kim",
    parts=(
        Uri(uri="https://example.org/a.png", modality="image", mime_type="image/png"),
        Blob(content="aGVsbG8=", modality="audio"),
        Other(data={"type": "hologram", "depth": 3}),
        Text(content="b64:looks sealed", extra={"lang": "en"}),
    ),
)
PLAIN = Trace(
    id="plain",
    runs=(
        Run(
            id="plain",
            messages=(Message.of("system", "You are kind."), ORDER_7, Message.of("assistant", "It is on its way.")),
            started=1_700_000_000_000_000_000,
            ended=1_700_000_001_000_000_000,
        ),
    ),
    outcomes={"success": 0.0, "kind": 0.5, "unknown": None},
)
RICH = Trace(
    id="rich",
    runs=(
        Run(
            id="rich",
            name="desk",
            messages=(ORDER_7, LOOKS, FOUND, TELLS, PICTURES, Message.of("assistant", "Thank you.")),
            calls=(
                ModelCall(
                    span_id="00000000000000a1",
                    model="tiny",
                    model_version="v3",
                    input=(ORDER_7,),
                    output=LOOKS,
                    tools=(GET_ORDER,),
                    prompt_ids=(1, 2, 3, 70_000),
                    completion_ids=(4, 5, 6),
                    logprobs=(-0.5, -0.125, -2.0),
                    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "logprobs": "processed"},
                    usage={"input_tokens": 4, "output_tokens": 3},
                    finish_reason="tool_calls",
                    message=1,
                    started=10,
                    ended=20,
                ),
                ModelCall(
                    span_id="00000000000000a2", model="tiny", error="TimeoutError: 3 s", input=(ORDER_7,), started=21
                ),
                ModelCall(
                    span_id="00000000000000a3",
                    model="tiny",
                    model_version="v3",
                    input=(ORDER_7, LOOKS, FOUND),
                    output=TELLS,
                    tools=(GET_ORDER,),
                    prompt_ids=(1, 2, 3, 70_000, 4, 5, 6, 8),
                    completion_ids=(9,),
                    logprobs=(-0.25,),
                    sampling={"temperature": 1.0},
                    finish_reason="stop",
                    message=3,
                    started=40,
                    ended=50,
                ),
            ),
            tools=(
                ToolRun(
                    span_id="00000000000000b1",
                    name="get_order",
                    call_id="c1",
                    arguments={"order_id": 7},
                    result={"status": "shipped", "date": "2026-05-20"},
                    backend="replay",
                    started=30,
                    ended=31,
                ),
                ToolRun(
                    span_id="00000000000000b2",
                    name="get_order",
                    call_id="c2",
                    error="not JSON",
                    fault="truncated",
                    started=32,
                ),
            ),
            attributes={"tenant": "north", "depth": [1, {"two": 2.5}]},
            started=5,
            ended=60,
        ),
    ),
    outcomes={"success": 1.0, "kind": 0.5},
)
_FACTS = {
    "cm2.task.id": "t1",
    "cm2.task.version": 1,
    "cm2.task.turns": 2,
    "cm2.group": "g",
    "cm2.rollout": 3,
    "cm2.tool.backends": '{"get_order":"replay"}',
    "cm2.simulator": "s",
    "cm2.user": "u",
    "cm2.tool.faults": '{"error":0.1}',
}
THREAD = Trace(
    id="thread",
    runs=(
        Run(
            id="thread-1",
            thread="thread",
            messages=(ORDER_7, TELLS),
            calls=(
                ModelCall(span_id="c1", model_version="v3", input=(ORDER_7,), output=TELLS, prompt_ids=(1,), message=1),
            ),
            attributes={
                **_FACTS,
                "cm2.guard.rejected": [{"attempt": "a", "failed": ["x"], "worth": 0.0, "messages": []}],
            },
            started=100,
            ended=200,
        ),
        Run(
            id="thread-2",
            thread="thread",
            status="error",
            failure=RunFailure(kind="ToolError", message="the shop is down"),
            messages=(Message.of("user", "Cancel it."),),
            attributes={**_FACTS, "cm2.gate.turn": 0, "cm2.gate.checklist": "0" * 64, "cm2.cut": "steps"},
            started=300,
            ended=400,
        ),
    ),
)
TRACES = (PLAIN, RICH, THREAD)

SUPPORT = Checklist(
    Item("looks_up", check={"called": "get_order"}, turn=0, required_for_next_turn=True, weight=2),
    Item("replies", check={"replied": True}, depends_on=["looks_up"], turn=0),
    Item("few_calls", check={"at_most": 3}, turn="trace", facet="tool_usage", level="action"),
    name="support",
    version=3,
)
JUDGED = Checklist(
    Item(
        "tells_date",
        "Does the reply give the date — 日付?",
        turn=0,
        pass_condition="The date equals the tool result's.",
        failure_examples=["No date", "Another date"],
        focus_on="assistant.reply",
        evidence=[{"turn": 0, "step": 1, "from": "tool.content", "snippet": "2026-05-20"}],
        kind="hold",
        facet="context",
        level="parameter",
    ),
    Item("no_promises", "Does the assistant promise a refund that no tool confirmed?", kind="avoid", weight=0.5),
    name="judged",
)
INCLUDED_YAML = """\
name: included
version: 2
include: [cm2:tool-hygiene, {cm2:confirmation-before-write: {writes: [cancel_order]}}]
items:
  - id: cancelled
    check: {called: cancel_order, with: {order_id: {from: user}}}
    turn: 1
"""
TASK = Task(
    id="t1",
    version=2,
    system="You are kind.",
    persona=Persona(persona="An impatient man", goal="wants order 7", knows=("order 7",), mood="cross"),
    max_turns=4,
    tools=(ToolSpec(name="get_order", description="An order's state.", parameters=GET_ORDER.parameters, reads=True),),
    recorded=(
        RecordedCall(name="get_order", arguments={"order_id": 7}, result="shipped"),
        RecordedCall(name="get_order", error="no"),
    ),
    checklist=ChecklistModel.model_validate(SUPPORT.to_json()),
    entities=("order:7",),
    outcome={"cancelled": False},
    metadata={"source": "fixed"},
)


def _digest(data: str | bytes) -> dict[str, Any]:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def versions() -> dict[str, dict[str, Any]]:
    """Reward versions, prompt versions and files, hashes of checklists and of a task, import formats."""
    judge = LLMJudge("test", votes=3, settings={"temperature": 0})
    persona = Persona(persona="An impatient man", goal="wants order 7")
    with TemporaryDirectory() as folder:
        path = Path(folder, "included.yaml")
        path.write_text(INCLUDED_YAML, encoding="utf-8")
        included = load_checklist(path)
    return {
        "reward versions": {
            "programmatic": ChecklistScorer(SUPPORT).version,
            "judged": ChecklistScorer(JUDGED, judge=LLMJudge("test"), tolerance=0.1).version,
            "stack": _stack().version,
            "task checklists": ChecklistScorer().version,
        },
        "versions": {
            "judge": judge.version,
            "judge per step": LLMJudge("test", protocol="per_step", images=True).version,
            "panel": Panel(LLMJudge("test"), judge).version,
            "cascade": Cascade(LLMJudge("test"), judge).version,
            "label prompt": prompt_version(),
            "relative": relative("test").version,
            "simulator": SimulatedTools("test", task=TASK, seed=3).version,
            "simulated user": LLMUser("test", persona, seed=3).version,
            "scripted user": ScriptedUser(["Hello"]).version,
        },
        "prompt files": dict(sorted(_prompts())),
        "hashes": {
            **{f"checklist {one.name}": one.hash for one in (SUPPORT, JUDGED, included)},
            **{f"checklist {one.name} as YAML": _digest(dump_checklist(one)) for one in (SUPPORT, JUDGED, included)},
            "task": _digest(canonical_json(TASK.to_json())),
        },
        "import formats": dict.fromkeys([*FORMATS, "labels"], "format"),
    }


def _stack() -> Stack:
    parts = (
        gate(outcome("success"), 0.5),
        add(SUPPORT, 0.75),
        multiply(outcome("kind")),
        penalty(length_penalty(8, 16), 0.1),
    )
    return Stack(*parts)


def _prompts() -> list[tuple[str, Any]]:
    """The prompt files by name: a file may move, its words may not change."""
    found = []
    for folder, _, files in os.walk(Path(cm2_agent.__file__).parent, followlinks=True):
        if Path(folder).name == "prompts":
            found += [(name, _digest(Path(folder, name).read_bytes())) for name in files if name.endswith(".md")]
    return found


def stored() -> dict[str, dict[str, Any]]:
    """The traces and their scores as JSON, what a SQLite store keeps of them, and its tables."""
    traces: dict[str, Any] = {one.id: _digest(canonical_json(one.to_json())) for one in TRACES}
    plain = [ChecklistScorer(SUPPORT).score_sync(one) for one in TRACES]
    stacked = asyncio.run(_stacked())
    scores = {
        f"{one.trace_id} by the {name}": {"reward": one.reward, **_digest(canonical_json(one.to_json()))}
        for name, scored in (("checklist", plain), ("stack", stacked))
        for one in scored
    }
    with TemporaryDirectory() as folder:
        path = Path(folder, "cm2.db")
        with SQLStore(f"sqlite:///{path}") as store:
            store.save_task(TASK)
            for checklist in (SUPPORT, JUDGED):
                store.save_checklist(checklist)
            for trace in TRACES:
                store.save_trace(trace)
                traces[f"{trace.id}, read back"] = store.trace(trace.id) == trace
            store.save_scores([*plain, *stacked])
            store.save_labels([Label(trace_id="rich", item="looks_up", rater="kim", value=True, turn=0, note="sure")])
        return {"traces": traces, "scores": scores, **_tables(path)}


async def _stacked() -> list[Score]:
    return [await _stack()(one) for one in TRACES]


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    """Columns and rows. A column that came after the record was frozen counts among the columns alone: what lies in the
    others must not change with it."""
    record = json.loads(Path(__file__).with_name("public_surface.json").read_text(encoding="utf-8"))
    frozen = record["frozen"]["columns"]
    columns: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    with closing(connect(path)) as database:
        names = [
            name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        for table in names:
            if table == "alembic_version" or table.startswith("sqlite_"):
                continue
            listed = [one[1:4] for one in database.execute(f"PRAGMA table_info({table})")]
            columns |= {f"{table}.{name}": f"{kind}{' NOT NULL' if needed else ''}" for name, kind, needed in listed}
            old = [name for name, _, _ in listed if f"{table}.{name}" in frozen] or [name for name, _, _ in listed]
            chosen = ", ".join(name for name in old if name not in WALL_CLOCK)
            found = sorted(repr(row) for row in database.execute(f"SELECT {chosen} FROM {table}"))
            rows[table] = {"rows": len(found), **_digest("\n".join(found))}
    return {"columns": columns, "rows": rows}


def printed() -> dict[str, str]:
    """The keys of what commands print with `--json`, as `command: key`."""
    with TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/cm2.db"
        chats = Path(folder, "chats.jsonl")
        talk = [{"role": "user", "content": "Where is order 7?"}, {"role": "assistant", "content": "It was shipped."}]
        records = [{"messages": talk, "task_id": "t1", "rollout": number, "reward": float(number)} for number in (0, 1)]
        chats.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
        checklist = Path(folder, "support.yaml")
        checklist.write_text(dump_checklist(SUPPORT), encoding="utf-8")
        done = {
            "cm2 import": ("import", "openai", str(chats), "--store", store),
            "cm2 score": ("score", str(checklist), "--store", store),
            "cm2 eval": ("eval", "--against", "official_reward", "--store", store),
        }
        return {f"{name}: {key}": "key" for name, words in done.items() for key in _answer(*words)}


def _answer(*words: str) -> list[str]:
    result = CliRunner().invoke(app, [*words, "--json"])
    if result.exit_code != 0:
        raise ValueError(f"cm2 {' '.join(words)} exited {result.exit_code}: {result.stderr}")
    return sorted(json.loads(result.stdout.splitlines()[-1]))


__all__ = ["printed", "stored", "versions"]
