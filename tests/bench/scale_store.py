"""Stores as large as one likes, made by SQL: some dialogues are saved as an application saves them, and their rows are
written again under other names, with other words, tasks, policies and days. Both databases."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import func, insert, select, text

from cm2_agent.store import SQLStore, schema
from cm2_agent.store.codec import body_of, pack_text
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.run_attributes import GATE, GROUP, ROLLOUT, TASK_ID, TASK_TURNS, TASK_VERSION
from cm2_agent.types.score import Score, TurnScore, Verdict

NUMBER, TASK, POLICY, ROLLOUT_NUMBER = "9999999", "task-88888", "policy-7777", 4294967
"""What the patterns hold in the place of what differs from dialogue to dialogue."""
PATTERNS = 48
DAY = 86_400_000_000_000
START = 1_790_000_000_000_000_000
PORTION = 500
TOOLS = tuple(
    ToolSpec(
        name=name,
        description=f"What {name} does with an order.",
        parameters={"type": "object", "properties": {"order_id": {"type": "integer"}}},
    )
    for name in ("get_order", "refund", "search", "cancel_order")
)
CHECKLIST = Checklist(
    Item("looks_up_first", "Is the order looked up before anything is said of it?", turn=0, facet="tool_usage"),
    Item("tells_date", "Does the reply give the date that get_order returned?", turn=0, depends_on=["looks_up_first"]),
    Item("asks_before", "Does it ask before it changes anything?", turn=1, facet="behavioral_intent"),
    Item("refunds", "Is the refund made?", turn=1, facet="tool_usage", part_of="asks_before"),
    Item("polite", "Is the reply polite?", facet="behavioral_intent"),
    Item("short", "Is the reply short?", facet="behavioral_intent"),
    Item("closes", "Does it say goodbye?", turn=2, facet="behavioral_intent"),
    Item("no_promises", "Is a refund promised that no tool confirmed?", kind="avoid"),
    name="scale-desk",
    version=1,
)
REWARD = f"scale-desk@{CHECKLIST.hash[:12]};judge=stub"
PLACES = (("looks_up_first", "tells_date", "polite", "short"), ("asks_before", "refunds", "polite", "short"))
LAST = ("closes", "polite", "short")


def dialogue(seed: int, *, turns: int, tokens: bool) -> tuple[list[Run], list[Score]]:
    """A dialogue of 10 spans (6 model calls, 4 executions of tools, in 3 runs), scored after its last run or, every
    second one, after each; with `turns=0` one of 2 spans in a single run."""
    dice = random.Random(f"scale:{seed}")
    name, said, ids = f"d{NUMBER}", [Message.of("system", "You are the order desk. " + "Look it up. " * 30)], []
    ids = [dice.randrange(800) for _ in range(120)]
    runs: list[Run] = []
    for turn in range(turns or 1):
        start = len(said) if turn else 0
        said.append(Message.of("user", f"{dice.choice(WORDS)} Order {NUMBER}, please: {'and then? ' * turn}"))
        calls: list[ModelCall] = []
        ran: list[ToolRun] = []
        for step in range(2):
            names = () if step else ("get_order", "refund") if turns and not turn else ("search",)
            asked = tuple(
                ToolCall(id=f"c{NUMBER}{turn}{tool}", name=tool, arguments={"order_id": NUMBER, "try": turn})
                for tool in names
            )
            output = Message.of("assistant", "" if asked else f"Order {NUMBER}: {dice.choice(WORDS)}", asked)
            completion = [dice.randrange(800) for _ in range(12)]
            began = START + turn * 60_000_000_000 + step * 1_000_000_000
            calls.append(
                ModelCall(
                    span_id=f"{NUMBER}{turn}{step}",
                    model="tiny",
                    model_version=POLICY,
                    input=tuple(said),
                    output=output,
                    tools=TOOLS,
                    prompt_ids=tuple(ids) if tokens else None,
                    completion_ids=tuple(completion) if tokens else None,
                    logprobs=tuple(-dice.random() for _ in completion) if tokens else None,
                    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "logprobs": "processed"},
                    usage={"input_tokens": len(ids), "output_tokens": len(completion)},
                    finish_reason="stop",
                    message=len(said) - start,
                    started=began,
                    ended=began + 900_000_000,
                )
            )
            said.append(output)
            ids += completion
            for call in asked:
                result = {"order": NUMBER, "status": dice.choice(WORDS), "day": dice.randrange(100)}
                said.append(Message(role="tool", parts=(ToolCallResponse(id=call.id, response=result),)))
                ids += [dice.randrange(800) for _ in range(15)]
                if turns or len(ran) < 1:
                    ran.append(
                        ToolRun(
                            span_id=f"t{call.id}",
                            name=call.name,
                            call_id=call.id,
                            arguments=call.arguments,
                            result=result,
                            backend="real",
                            started=began,
                            ended=began,
                        )
                    )
        attributes = {TASK_ID: TASK, TASK_VERSION: 1, TASK_TURNS: turns or 1, GROUP: "round-1"}
        attributes |= {ROLLOUT: ROLLOUT_NUMBER, GATE: None}
        runs.append(
            Run(
                id=f"r{NUMBER}-{turn}",
                thread=name,
                messages=tuple(said[start:]),
                calls=tuple(calls),
                tools=tuple(ran) if turns else (),
                attributes=attributes,
                started=START + turn * 60_000_000_000,
                ended=START + turn * 60_000_000_000 + 5_000_000_000,
            )
        )
    return runs, list(_scores(dice, name, turns, live=seed % 2 == 1))


WORDS = ("It is on its way.", "Where is it?", "I am sorry to hear that.", "The parcel left on Monday.", "Thank you!")


def _scores(dice: random.Random, name: str, turns: int, *, live: bool) -> Iterator[Score]:
    if not turns:
        verdict = Verdict(item="polite", value=dice.random() < 0.6, weight=1.0, step=1, paid=None)
        block = TurnScore(turn=0, reached=True, steps=2, reward=dice.random(), verdicts=(verdict,))
        yield Score(trace_id=name, reward_version=REWARD, reward=block.reward, checklist=CHECKLIST.hash, turns=(block,))
        return
    places = (*PLACES, LAST)
    judged = [_turn(dice, turn, items) for turn, items in enumerate(places)]
    for seen in range(1 if live else turns, turns + 1):
        blocks = [*judged[:seen], *(_unreached(turn, places[turn]) for turn in range(seen, turns))]
        blocks.append(_turn(dice, None, ("no_promises",)))
        null = any(one.reward is None for one in blocks)
        reward = None if null else sum(one.reward or 0.0 for one in blocks) / len(blocks)
        usage = {"calls": 2, "re_asks": 0, "escalated": 0, "cached": 0, "input_tokens": 900, "output_tokens": 80}
        yield Score(
            trace_id=name,
            reward_version=REWARD,
            reward=reward,
            null_reason="verdicts" if null else None,
            checklist=CHECKLIST.hash,
            turns=tuple(blocks),
            runs=seen,
            usage={**usage, "usd": 0.0004},
        )


def _turn(dice: random.Random, turn: int | None, items: Sequence[str]) -> TurnScore:
    verdicts = []
    for place, item in enumerate(items):
        drawn = dice.random()
        value = None if drawn < 0.01 else drawn < 0.75
        quote = {"turn": turn or 0, "step": 1, "from": "assistant.reply", "snippet": f"{dice.choice(WORDS)} {NUMBER}"}
        verdicts.append(
            Verdict(
                item=item,
                value=value,
                weight=1 / len(items),
                step=2 if value else None,
                paid=value,
                reason="judge failed" if value is None else None,
                cause="content" if value is None else None,
                depends_on=(0,) if item == "tells_date" and place else (),
                explanation=f"The reply about {NUMBER} was looked at, and {dice.choice(WORDS).lower()}",
                evidence=(quote,) if value is False else (),
            )
        )
    paid = [one.value for one in verdicts]
    known = None if None in paid else sum(map(bool, paid)) / len(paid)
    return TurnScore(turn=turn, reached=True, steps=2, reward=known, verdicts=tuple(verdicts))


def _unreached(turn: int, items: Sequence[str]) -> TurnScore:
    missing = (Verdict(item=item, value=False, weight=1 / len(items), paid=False, reason="unreached") for item in items)
    return TurnScore(turn=turn, reached=False, steps=0, reward=0.0, verdicts=tuple(missing))


Rows = list[tuple[Any, ...]]
TABLES = (
    *(schema.contents, schema.group_keys, schema.traces, schema.runs, schema.model_calls, schema.tool_runs),
    *(schema.scores, schema.verdicts),
)


class Pattern:
    """The rows of a saved dialogue, and how to write them again."""

    def __init__(self, pattern: dict[str, Rows], known: dict[bytes, tuple[str, str]]) -> None:
        self._rows = pattern
        self._contents = [(digest, *both) for digest, both in known.items() if NUMBER in both[1]]
        self.shared = [
            (digest, kind, *stored_text(body)) for digest, (kind, body) in known.items() if NUMBER not in body
        ]
        self._first = {name: min((row[0] for row in rows), default=0) for name, rows in pattern.items()}

    def rows(
        self, number: int, seqs: dict[str, int], task: str, policy: str, group: int, place: int
    ) -> dict[str, Rows]:
        """The rows of dialogue `number`, whose keys begin after `seqs`, which go on."""
        own = f"{number:07d}"
        renamed: dict[bytes, bytes] = {}
        out: dict[str, Rows] = {name: [] for name in self._rows}
        out["contents"] = []
        for digest, kind, body in self._contents:
            words = body.replace(NUMBER, own)
            renamed[digest] = fresh = hashlib.sha256(words.encode()).digest()
            out["contents"].append((fresh, kind, *stored_text(words)))
        shift = {name: seqs[name] + 1 - self._first[name] for name in ("traces", "runs", "scores")}
        later = (number * 7919 % 30) * DAY + number * 1000
        for name, rows in self._rows.items():
            columns = PLACED[name]
            for row in rows:
                out[name].append(
                    tuple(
                        None
                        if value is None
                        else change(value, own, task, policy, renamed, shift, later, group, place)
                        if change is not None
                        else value
                        for value, change in zip(row, columns, strict=True)
                    )
                )
            if name in seqs:
                seqs[name] += len(rows)
        return out


def stored_text(body: str) -> tuple[str | None, bytes | None]:
    """A content's columns `body` and `packed`."""
    packed = pack_text(body)
    return (body, None) if packed is None else (None, packed)


Change = Callable[..., Any]


def _words(value: str, own: str, task: str, policy: str, *rest: Any) -> str:
    changed = value.replace(NUMBER, own).replace(TASK, task).replace(POLICY, policy)
    return changed.replace(str(ROLLOUT_NUMBER), str(rest[-1]))


def _digests(value: bytes, own: str, task: str, policy: str, renamed: dict[bytes, bytes], *rest: Any) -> bytes:
    parts = (value[start : start + 32] for start in range(0, len(value), 32))
    return b"".join(renamed.get(part, part) for part in parts)


def _key(table: str) -> Change:
    return lambda value, own, task, policy, renamed, shift, *rest: value + shift[table]


def _time(value: int, own: str, task: str, policy: str, renamed: Any, shift: Any, later: int, *rest: Any) -> int:
    return value + later


def _change(table: Any, column: Any) -> Change | None:
    name = column.name
    if name == "seq":
        return _key(table.name)
    if name in ("trace", "run", "score", "base_run"):
        return _key({"trace": "traces", "run": "runs", "score": "scores", "base_run": "runs"}[name])
    if name == "group_key":
        return lambda value, *rest: rest[-2]
    if name == "rollout":
        return lambda value, *rest: rest[-1]
    if name in ("started", "ended", "stored"):
        return _time
    if name in ("messages", "history", "input", "output") and column.type.python_type is bytes:
        return _digests
    fixed = ("project", "kind", "status", "sampling", "usage", "depends_on", "soft", "item", "reason", "cause")
    if column.type.python_type is not str or name in fixed:
        return None
    return _words


PLACED = {table.name: [_change(table, column) for column in table.columns] for table in TABLES}


def _patterns(turns: int, tokens: bool, number: int) -> tuple[list[Pattern], str]:
    """The patterns, and the JSON of the group key that they share."""
    found, keys = [], {""}
    for seed in range(number):
        with SQLStore("sqlite://") as small:
            small.save_checklist(CHECKLIST)
            runs, scores = dialogue(seed, turns=turns, tokens=tokens)
            small.save_runs(runs)
            for score in scores:
                small.save_score(score)
            with small.database.reading() as connection:
                rows = {table.name: [tuple(row) for row in connection.execute(select(table))] for table in TABLES[2:]}
                contents = connection.execute(select(schema.contents))
                bodies = {row.hash: (row.kind, body_of(row)) for row in contents}
                keys.add(connection.execute(select(schema.group_keys.c.key)).scalar_one())
        found.append(Pattern(rows, bodies))
    (key,) = keys - {""}
    return found, key


def make(url: str, *, traces: int, spans: int = 10, group: int = 16, tasks: int = 64, tokens: bool = True) -> None:
    """Fill an empty store: dialogues of 10 spans, or traces of 2 (`spans`); a policy holds `tasks` groups of `group`
    rollouts before the next one does."""
    patterns, key = _patterns(3 if spans == 10 else 0, tokens, min(PATTERNS, 2 + traces // 16))
    with SQLStore(url) as store:
        store.save_checklist(CHECKLIST)
        store.register_reward(REWARD, CHECKLIST.hash)
        shared = {row[0]: row for pattern in patterns for row in pattern.shared}
        with store.database.writing() as connection:
            for row in shared.values():
                connection.execute(insert(schema.contents).values(row))
        seqs: dict[str, int] = {"traces": 0, "runs": 0, "scores": 0}
        dice = random.Random("scale")
        for first in range(0, traces, PORTION):
            rows: dict[str, Rows] = {table.name: [] for table in TABLES}
            for number in range(first, min(first + PORTION, traces)):
                place, number_of_group = number % group, number // group
                task, policy = f"task-{number_of_group % tasks:05d}", f"policy-{number_of_group // tasks:04d}"
                if not place or number == first:
                    body = _words(key, "", task, policy, 0)
                    digest = hashlib.sha256(body.encode()).digest()
                    if not place:
                        rows["group_keys"].append((number_of_group + 1, digest, task, policy, body))
                pattern = patterns[dice.randrange(len(patterns))]
                for name, found in pattern.rows(number, seqs, task, policy, number_of_group + 1, place).items():
                    rows[name] += found
            _write(store, rows)
        with store.database.writing() as connection:
            if not store.database.sqlite:
                for table in ("group_keys", *seqs):
                    last = f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'), max(seq)) FROM {table}"
                    connection.exec_driver_sql(last)
            connection.execute(text("ANALYZE"))
            assert connection.execute(select(func.count()).select_from(schema.traces)).scalar_one() == traces


def _write(store: SQLStore, rows: dict[str, Rows]) -> None:
    with store.database.storing() as cursor:
        for table in TABLES:
            names = ", ".join(f'"{column.name}"' for column in table.columns)
            if store.database.sqlite:
                marks = ", ".join("?" for _ in table.columns)
                cursor.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows[table.name])
                continue
            with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                for row in rows[table.name]:
                    copy.write_row(row)


__all__ = ["CHECKLIST", "REWARD", "make"]
