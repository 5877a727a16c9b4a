"""Importers of other people's recordings: `read_recordings` yields what each record became, or why it was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from cm2_agent.errors import CM2Error, TraceError
from cm2_agent.importers import registry
from cm2_agent.importers.chat import OFFICIAL, Chats, ReadChat
from cm2_agent.importers.failures import by_pattern, compiled, unknown_failures
from cm2_agent.importers.gathered_rows import gathered
from cm2_agent.importers.json_records import Found, Problem
from cm2_agent.importers.recognise import recognise, unwrapped
from cm2_agent.importers.record_source import records_of
from cm2_agent.importers.spans_to_traces import ReadSpans, SpanTraces
from cm2_agent.types.human_labels import Label
from cm2_agent.types.imported import ImportedDialogue, ImportResult
from cm2_agent.types.protocols import Importer
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

ENTRY_POINTS = "cm2_agent.importers"
"""The entry-point group in which an installed package offers formats of its own."""
FORMATS: Mapping[str, EntryPoint] = {
    one.name: EntryPoint(one.name, f"cm2_agent.importers.{one.reader}", ENTRY_POINTS) for one in registry.FORMATS
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
    score: Score | None = None

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
    >>> {"labels", "openai", "tau-bench"} <= formats().keys()
    True
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
    format: str | Importer | type[Importer] | None,
    path: str | Path,
    *,
    checklists: bool = False,
    error_pattern: str | None = None,
    encoding: str | None = None,
    desk: str | None = None,
) -> Iterator[Imported | ImportedLabels | Problem]:
    """Read a file, in order: what each record became, or a Problem for one that could not be read.

    It may be JSON, JSON Lines, CSV, parquet or an archive of Inspect's, and packed by gzip, bzip2 or xz. Records are
    read one at a time, whatever the file's size. The same file gives the same ids.

    Args:
        format: the name of a format (`formats()`), an importer (a function of one record, or a class of such functions
            that is made anew for the file), or None: the format that `recording_format` sees.
        path: the file. Its name without the ending is the importer's `source`.
        checklists: whether tasks get a checklist made from the record, where the format knows enough for that.
        error_pattern: an RE2 pattern: a tool's answer that matches it is an error, and one that neither matches nor is
            marked is none. Without it, answers that the format does not mark may have failed (status `answered`).
        encoding: the text's, such as `latin-1`; by default that of its byte order mark, else UTF-8.
        desk: for tau-bench's files, the desk that they are of; by default what system prompt and file name say.

    Raises:
        TraceError: an unknown format, a class that cannot be made, a pattern that RE2 does not read, a desk for a file
            of another format, or a file that cannot be opened or is empty.
        OSError: the disk failed while the file was read.

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
    if format is None:
        format = recording_format(path, encoding=encoding).name
    found = _named(format) if isinstance(format, str) else format
    known = registry.BY_NAME.get(format) if isinstance(format, str) and format not in _others() else None
    if known is not None and known.spans is not None:
        importer: Importer = SpanTraces(cast("ReadSpans", found))
    elif known is not None and known.chats:
        importer = Chats(cast("ReadChat", found))
    else:
        importer = _made(found)
    if desk is not None and format != "tau-bench":
        named = format if isinstance(format, str) else "your importer's"
        raise TraceError(f"{path}: is of format {named}; a desk is for tau-bench's files alone. Leave it out (--desk)")
    options = {} if desk is None else {"desk": desk}
    pattern = compiled(error_pattern)
    records = records_of(path, encoding)
    if known is not None:
        records = _dialogues(records, known)
    read = _read(importer, records, _source(path), {"checklists": checklists, **options})
    return read if pattern is None else (_failing(one, pattern) for one in read)


@dataclass(frozen=True, kw_only=True)
class RecordingFormat:
    """The format that a file was recognised as: its name, and what said so."""

    name: str
    reason: str


def recording_format(path: str | Path, *, encoding: str | None = None) -> RecordingFormat:
    """The format of a file, by its first records.

    Raises:
        TraceError: it is of none that is known (the message says what it holds, which formats are nearest, and what to
            type), or cannot be opened.

    >>> import pathlib
    >>> import tempfile
    >>> from cm2_agent.importers import recording_format
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "talk.json"
    >>> _ = file.write_text('[{"conversations": [{"from": "human", "value": "Hi"}]}]')
    >>> recording_format(file)
    RecordingFormat(name='sharegpt', reason='`conversations`: turns with `from` and `value`')
    """
    found = recognise(path, _unwrapped(records_of(path, encoding)))
    return RecordingFormat(name=found.format.name, reason=found.reason)


def _source(path: str | Path) -> str:
    """The file's name without its ending, and without that of what it is packed by."""
    stem = Path(path).stem
    return Path(stem).stem if Path(path).suffix in (".gz", ".bz2", ".xz") else stem


def _others() -> set[str]:
    return formats().keys() - registry.BY_NAME.keys()


def _unwrapped(records: Iterator[Found | Problem]) -> Iterator[Found | Problem]:
    """The records, those of a list that an object only wraps in its place."""
    for record in records:
        inner = unwrapped(record.value) if isinstance(record, Found) else None
        if inner is None:
            yield record
        else:
            values, note = inner
            yield from (replace(cast("Found", record), value=one, note=note) for one in values)


def _dialogues(records: Iterator[Found | Problem], known: registry.Format) -> Iterator[Found | Problem]:
    """The records of single dialogues: where a record of the format may hold several, each; where it is a part of one,
    those that belong together."""
    parts = _parts(records, known)
    return parts if known.spans is None else gathered(parts, known.spans.trace, known.spans.time)


def _parts(records: Iterator[Found | Problem], known: registry.Format) -> Iterator[Found | Problem]:
    for record in _unwrapped(records):
        if isinstance(record, Problem) or known.split is None:
            yield record
            continue
        try:
            for name, value in known.split(record.value):
                yield replace(record, value=value, name=name)
        except (TraceError, ValueError, TypeError, AttributeError) as error:
            yield Problem(line=record.line, number=record.number, reason=_reason(error))


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
    importer: Importer, records: Iterator[Found | Problem], source: str, options: Mapping[str, Any]
) -> Iterator[Imported | ImportedLabels | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            result = importer(record.value, source=source, **options)
        except (Exception, SystemExit) as error:  # other people's code: what it raises costs this record alone
            named = f"{record.name}: " if record.name else ""
            yield Problem(line=record.line, number=record.number, reason=f"{named}{_reason(error)}")
            continue
        yield from _results(result, record)


def _results(result: ImportResult, record: Found) -> Iterator[Imported | ImportedLabels | Problem]:
    line, number = record.line, record.number
    if isinstance(result, Trace):
        result = ImportedDialogue(trace=result)
    several = result if isinstance(result, Sequence) and not isinstance(result, str) else (result,)
    if several and all(isinstance(one, Label) for one in several):
        yield ImportedLabels(line=line, number=number, labels=tuple(cast("Sequence[Label]", several)))
    elif several and all(isinstance(one, ImportedDialogue) for one in several):
        for one in cast("Sequence[ImportedDialogue]", several):
            note = "; ".join(filter(None, (one.note, record.note))) or None
            yield Imported(line=line, number=number, trace=one.trace, task=one.task, note=note, score=one.score)
    else:
        reason = (
            f"the importer returned {type(result).__name__} {result!r:.60}; expected a Trace, an ImportedDialogue (or a"
            " list of them), or a list of Labels"
        )
        yield Problem(line=line, number=number, reason=reason)


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
    "RecordingFormat",
    "formats",
    "read_recordings",
    "recording_format",
]
