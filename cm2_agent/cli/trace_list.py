"""The stored traces as a list that fits its terminal, and what comes to it while one looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from cm2_agent.cli.common import console, one_line, print_result, printable
from cm2_agent.cli.eval import scored_version
from cm2_agent.cli.judge_options import usage_text

if TYPE_CHECKING:
    from cm2_agent.cli.trace_filters import FilterOptions
    from cm2_agent.store import SQLStore
    from cm2_agent.types.score import Score
    from cm2_agent.types.trace import Trace

COLUMNS = ("time", "trace", "agent", "status", "reward", "begins")
NARROW = 100
"""A terminal of fewer columns shows the beginnings of ids and names."""
MOST = {"time": 16, "trace": 12, "agent": 10, "status": 11, "reward": 12}
MOST_WIDE = {"time": 16, "trace": 36, "agent": 20, "status": 11, "reward": 24}
SHOWN = 1000
"""So many rows are remembered, so that a change that shows in none of their columns is not printed again."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TraceList:
    """The traces of a store that the options choose, with their scores under a reward version (None: the newest)."""

    store: SQLStore
    where: FilterOptions
    reward: str | None

    def print(self, *, limit: int, after: str | None, as_json: bool) -> None:
        """The newest traces first, those behind the trace `after`."""
        version = scored_version(self.store, self.reward)
        chosen = self.where.trace_filter(version)
        found = self.store.scored_traces(chosen, reward=version, limit=limit, newest_first=True, after=after)
        rows = [row_of(*pair) for pair in found]
        total = self.store.count_traces(chosen)
        more = rows[-1]["trace"] if len(rows) == limit and limit < total else None
        usage = {} if version is None else self.store.judging().get(version, {})
        if as_json:
            judging = {"judging": usage} if usage else {}
            print_result({"total": total, "reward": version, "traces": rows, "more": more, **judging}, as_json=True)
            return
        width = console().width
        typer.echo(one_line(f"{len(rows)} of {total} traces; reward {version or '(not scored yet)'}", width))
        for line in lines(rows, width):
            typer.echo(line)
        if more is not None:
            typer.echo(printable(f"more: cm2 show --after {more}"))
        if usage:
            console().print(f"judging cost: {usage_text(usage)}", soft_wrap=True)

    def follow(self, *, limit: int, as_json: bool, wait: Callable[[], None]) -> None:
        """The newest traces, the newest last, then each that is new or has changed, until the user interrupts; `wait`
        is called between two looks."""
        changes = self.store.changes()
        printed = _Printed(as_json=as_json)
        try:
            printed.add(list(self._rows(None, limit))[::-1])
            while True:
                wait()
                printed.add(list(self._rows(changes.next(), None)))
        except KeyboardInterrupt:
            return

    def _rows(self, ids: Sequence[str] | None, limit: int | None) -> Iterator[Row]:
        """The rows of all chosen traces, the newest first, or of those of these ids in their order."""
        if ids is not None and not ids:
            return
        version = scored_version(self.store, self.reward)
        chosen = self.where.trace_filter(version)
        newest = ids is None
        for pair in self.store.scored_traces(chosen, reward=version, ids=ids, limit=limit, newest_first=newest):
            yield row_of(*pair)


class _Printed:
    """The rows that were printed one after the other: one that looks as it did is not printed again."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: dict[str, Row] = {}
        self._begun = False

    def add(self, rows: Sequence[Row]) -> None:
        new = [row for row in rows if self._rows.get(row["trace"]) != row]
        for row in new:
            self._rows.pop(row["trace"], None)
            self._rows[row["trace"]] = row
        while len(self._rows) > SHOWN:
            del self._rows[next(iter(self._rows))]
        if self._as_json:
            for row in new:
                typer.echo(json.dumps(row, ensure_ascii=True, allow_nan=False))
        elif new:
            width = console().width
            sizes = widths_of([*self._rows.values()], width)  # they grow with what comes
            for line in lines(new, width, widths=sizes, head=not self._begun):
                typer.echo(line)
            self._begun = True


def row_of(trace: Trace, score: Score | None) -> Row:
    """What the list says of a trace, as JSON."""
    first_message = next((message.text for message in trace.messages if message.role == "user"), "")
    started = min((run.started for run in trace.runs if run.started), default=0)
    last = trace.runs[-1] if trace.runs else None
    agents = dict.fromkeys(step.agent for step in trace.steps if step.agent is not None)
    return {
        "trace": trace.id,
        "time": datetime.fromtimestamp(started // 10**9, UTC).isoformat() if 0 < started < 2**62 else None,
        "agent": ", ".join(agents) or (None if last is None else last.name),
        "status": None if last is None else last.status,
        "task": trace.task_id,
        "turns": len(trace.turns),
        "steps": len(trace.steps),
        "reward": None if score is None else score.reward,
        "lower": None if score is None else score.lower,
        "upper": None if score is None else score.upper,
        "scored": score is not None,
        "null_reason": None if score is None else score.null_reason,
        "usd": None if score is None else score.usage.get("usd"),
        "failure": None if trace.failure is None else trace.failure.kind,
        "outcomes": dict(trace.outcomes),
        "begins": one_line(first_message, 200),
    }


def lines(rows: Sequence[Row], width: int, *, widths: dict[str, int] | None = None, head: bool = True) -> Iterator[str]:
    """The rows as lines of at most `width` columns of a terminal."""
    from rich.cells import cell_len, set_cell_size

    sizes = widths_of(rows, width) if widths is None else widths
    every = [{name: name for name in COLUMNS}, *map(_cells, rows)] if head else [*map(_cells, rows)]
    for cells in every:
        line = ""
        for name in COLUMNS:
            text, size = cells[name], sizes[name]
            if cell_len(text) > size:
                text = set_cell_size(text, size - 1).rstrip() + "…"
            line += set_cell_size(text, size) + "  "
        yield line.rstrip()


def widths_of(rows: Sequence[Row], width: int) -> dict[str, int]:
    """How wide each column is: as its cells, up to a bound; the first words get what is left."""
    from rich.cells import cell_len

    most = MOST if width < NARROW else MOST_WIDE
    cells = [*map(_cells, rows)]
    sizes = {
        name: min(bound, max([len(name), *(cell_len(one[name]) for one in cells)])) for name, bound in most.items()
    }
    sizes["begins"] = max(width - sum(sizes.values()) - 2 * len(sizes), len("begins"))
    return sizes


def _cells(row: Row) -> dict[str, str]:
    time = "" if row["time"] is None else row["time"][:16].replace("T", " ")
    if row["reward"] is not None:
        worth = f"{row['reward']:.3f}"
    else:
        worth = f"NULL: {row['null_reason'] or 'unknown'}" if row["scored"] else "not scored"
    cells = {
        "time": time,
        "trace": row["trace"],
        "agent": row["agent"] or "",
        "status": row["status"] or "",
        "reward": worth,
        "begins": row["begins"],
    }
    return {name: one_line(text, 400) for name, text in cells.items()}


__all__ = ["TraceList", "lines", "row_of", "widths_of"]
