"""Importers of other people's recordings: `read_recordings` yields what each record became, or why it was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from cm2_agent.errors import CM2Error, TraceError
from cm2_agent.importers.failures import by_pattern, compiled, unknown_failures
from cm2_agent.importers.json_records import Found, Problem, read_records
from cm2_agent.importers.tau_bench import OFFICIAL
from cm2_agent.types.human_labels import Label
from cm2_agent.types.imported import ImportedDialogue, ImportResult
from cm2_agent.types.protocols import Importer
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

ENTRY_POINTS = "cm2_agent.importers"
"""The entry-point group in which an installed package offers formats of its own."""
FORMATS: Mapping[str, EntryPoint] = {
    name: EntryPoint(name, f"cm2_agent.importers.{value}", ENTRY_POINTS)
    for name, value in {
        "tau-bench": "tau_bench:read_tau_bench",
        "openai": "openai_chat:OpenAIChats",
        "labels": "human_labels:read_label",
    }.items()
}
"""The formats that come with CM2, as entry points: they are loaded as those of other packages are."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A dialogue that a record became. `note` says why it got no checklist although checklists were asked for."""

    line: int
    number: int
    trace: Trace
    task: Task | None = None
    note: str | None = None

    @property
    def unknown_failures(self) -> int:
        """How many of its tools' answers do not tell whether the call failed."""
        return unknown_failures(self.trace.runs)


@dataclass(frozen=True, kw_only=True)
class ImportedLabels:
    """People's labels that a record became."""

    line: int
    number: int
    labels: tuple[Label, ...]


def formats() -> dict[str, EntryPoint]:
    """The formats that `read_recordings` knows by name: those that come with CM2, then those of installed packages.

    A package offers one as an entry point of the group `cm2_agent.importers`.

    Raises:
        TraceError: Two formats have the same name.

    >>> from cm2_agent.importers import formats
    >>> sorted(formats())[:3]
    ['labels', 'openai', 'tau-bench']
    """
    found = dict(FORMATS)
    for entry in entry_points(group=ENTRY_POINTS):
        if found.setdefault(entry.name, entry).value != entry.value:
            raise TraceError(
                f"two importers are named {entry.name!r}: {found[entry.name].value} and {entry.value}; expected one."
                " Uninstall the package of one of them"
            )
    return found


def read_recordings(
    format: str | Importer | type[Importer],
    path: str | Path,
    *,
    checklists: bool = False,
    error_pattern: str | None = None,
) -> Iterator[Imported | ImportedLabels | Problem]:
    """Read a JSON or JSON Lines file, in order: what each record became, or a Problem for one that could not be read.

    The same file gives the same ids.

    Args:
        format: the name of a format (`openai`, `tau-bench`, `labels`, or one that an installed package offers), or an
            importer: a function of one record, or a class of such functions that is made anew for the file.
        path: the file. Its name without the ending is the importer's `source`.
        checklists: whether tasks get a checklist made from the record, where the format knows enough for that.
        error_pattern: an RE2 pattern: a tool's answer that matches it is an error, and one that neither matches nor is
            marked is none. Without it, answers that the format does not mark may have failed (status `answered`).

    Raises:
        TraceError: an unknown format, a class that cannot be made, a pattern that RE2 does not read, or a file that
            cannot be opened or is empty.

    >>> import json
    >>> import pathlib
    >>> import tempfile
    >>> from cm2_agent import Message, Run, Trace, read_recordings
    >>> def read_note(record, **options):
    ...     return Trace.of(Run(id=record["id"], messages=(Message.of("user", record["text"]),)))
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "notes.jsonl"
    >>> _ = file.write_text(json.dumps({"id": "n1", "text": "Hi"}) + "\\n" + json.dumps({"id": "n2"}))
    >>> first, second = read_recordings(read_note, file)
    >>> first.trace.id, str(second)
    ('n1', "line 2, record 2: KeyError: 'text'")
    """
    found = _named(format) if isinstance(format, str) else format
    pattern = compiled(error_pattern)
    read = _read(_made(found), read_records(path), Path(path).stem, checklists)
    return read if pattern is None else (_failing(one, pattern) for one in read)


def _failing(one: Imported | ImportedLabels | Problem, pattern: Any) -> Imported | ImportedLabels | Problem:
    if not isinstance(one, Imported):
        return one
    try:
        return replace(one, trace=by_pattern(one.trace, pattern))
    except Exception as error:  # what other people's importers call a trace may be none: that costs this record alone
        return Problem(line=one.line, number=one.number, reason=_reason(error))


def _made(found: Importer | type[Importer] | Callable[..., Any]) -> Importer:
    """The importer itself, or a new one of its class. Raises TraceError."""
    if not isinstance(found, type):
        return found
    expected = "expected a class that is made without arguments and called with a record"
    try:
        importer: Importer = found()
    except Exception as error:  # other people's code, which may raise anything
        raise TraceError(
            f"importer {found.__name__} cannot be made: {type(error).__name__}: {error}; {expected}"
        ) from error
    if not callable(importer):
        raise TraceError(f"importer {found.__name__} has no __call__; {expected}")
    return importer


def _named(name: str) -> Callable[..., Any]:
    known = formats()
    if name not in known:
        raise TraceError(
            f"format {name!r} is unknown; expected one of {', '.join(known)}, or an importer of your own. Type: cm2"
            " import MODULE:IMPORTER FILE"
        )
    try:
        found = known[name].load()
    except Exception as error:  # the import runs another package's code, which may raise anything
        raise TraceError(
            f"format {name!r} cannot be loaded from {known[name].value}: {type(error).__name__}: {error}; expected a"
            " function or a class. Install its package again, or name the importer: cm2 import MODULE:IMPORTER FILE"
        ) from error
    if not callable(found):
        raise TraceError(
            f"format {name!r} is {known[name].value}, {type(found).__name__} {found!r:.60}; expected a function or a"
            " class"
        )
    return cast("Callable[..., Any]", found)


def _read(
    importer: Importer, records: Iterator[Found | Problem], source: str, checklists: bool
) -> Iterator[Imported | ImportedLabels | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            result = importer(record.value, source=source, checklists=checklists)
        except (Exception, SystemExit) as error:  # other people's code: what it raises costs this record alone
            yield Problem(line=record.line, number=record.number, reason=_reason(error))
            continue
        yield _result(result, record)


def _result(result: ImportResult, record: Found) -> Imported | ImportedLabels | Problem:
    line, number = record.line, record.number
    if isinstance(result, Trace):
        return Imported(line=line, number=number, trace=result)
    if isinstance(result, ImportedDialogue):
        return Imported(line=line, number=number, trace=result.trace, task=result.task, note=result.note)
    if isinstance(result, Sequence) and result and all(isinstance(one, Label) for one in result):
        return ImportedLabels(line=line, number=number, labels=tuple(result))
    reason = (
        f"the importer returned {type(result).__name__} {result!r:.60}; expected a Trace, an ImportedDialogue, or a"
        " list of Labels"
    )
    return Problem(line=line, number=number, reason=reason)


def _reason(error: BaseException) -> str:
    """Our own errors say all there is to say; of others the kind is half of it (`KeyError: 'text'`)."""
    own = isinstance(error, CM2Error) or type(error) is ValueError
    return (str(error) if own and str(error) else f"{type(error).__name__}: {error}").replace("\n", "; ")


__all__ = [
    "ENTRY_POINTS",
    "FORMATS",
    "OFFICIAL",
    "Imported",
    "ImportedDialogue",
    "ImportedLabels",
    "Importer",
    "Problem",
    "formats",
    "read_recordings",
]
