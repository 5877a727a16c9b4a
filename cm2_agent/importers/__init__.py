"""Readers of other people's recordings: `read(format, path)` yields what each record became, or why it was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cm2_agent.errors import CM2Error, TraceError
from cm2_agent.importers.json_records import Found, Problem, read_records
from cm2_agent.importers.openai_chat import OpenAIChats
from cm2_agent.importers.tau_bench import OFFICIAL, read_tau_bench
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

Reader: TypeAlias = Callable[..., tuple[Trace, Task | None, str | None]]
FORMATS: Mapping[str, Callable[[], Reader]] = {"tau-bench": lambda: read_tau_bench, "openai": OpenAIChats}
"""What `cm2 import` reads, by name: a fresh reader for each file."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a record became. `note` says why it got no checklist although checklists were asked for."""

    line: int
    number: int
    trace: Trace
    task: Task | None = None
    note: str | None = None


def read(format: str, path: str | Path, *, checklists: bool = False) -> Iterator[Imported | Problem]:
    """Read a file of recorded dialogues, in order. A record that is broken is a Problem; the rest is read all the same.

    `format` is one of FORMATS. With `checklists` the tasks get one compiled from the record's gold actions, where it
    has them. The same file gives the same ids. Raises TraceError: an unknown format, a file that cannot be opened or is
    empty."""
    if format not in FORMATS:
        raise TraceError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}, labels")
    return _read(FORMATS[format](), read_records(path), Path(path).stem, checklists)


def _read(
    reader: Reader, records: Iterator[Found | Problem], source: str, checklists: bool
) -> Iterator[Imported | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            trace, task, note = reader(record.value, source=source, checklists=checklists)
        except (CM2Error, ValueError) as error:
            yield Problem(line=record.line, number=record.number, reason=str(error).replace("\n", "; "))
            continue
        yield Imported(line=record.line, number=record.number, trace=trace, task=task, note=note)


__all__ = ["FORMATS", "OFFICIAL", "Imported", "Problem", "read"]
