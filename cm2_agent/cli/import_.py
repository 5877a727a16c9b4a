"""`cm2 import`: other people's recordings and people's labels into the store."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    open_store,
    print_result,
    printable,
    tracked,
)
from cm2_agent.cli.run import load_function
from cm2_agent.errors import StoreError, TaskError, TraceError
from cm2_agent.online.save_errors import meaning_of
from cm2_agent.types.json_values import JSON

if TYPE_CHECKING:
    from cm2_agent.importers import Imported, ImportedLabels, Importer, Problem
    from cm2_agent.store import SQLStore
    from cm2_agent.types.human_labels import Label

_DISK = (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.ESTALE)
SHOWN = 20
"""So many broken records are reported one by one; the rest are counted."""


def register(app: typer.Typer) -> None:
    short = "Import recorded dialogues or human labels into the store."
    help = (
        "Read recorded dialogues of other tools, or people's labels, into the store. It says which format it sees in"
        " the file, and why; a FORMAT before the file decides otherwise. A broken record is reported and skipped, and"
        " importing a file again changes nothing."
    )
    app.command("import", help=help, short_help=short)(import_file)


def import_file(
    format: Annotated[
        list[str] | None,
        typer.Argument(metavar="FORMAT", help="A format's name, or MODULE:IMPORTER of your own; else it is seen."),
    ] = None,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, JSON Lines, CSV, parquet or .eval; packed too.")],
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    checklists: Annotated[
        bool, typer.Option("--checklists", help="Give each task a checklist compiled from its gold actions.")
    ] = False,
    error_pattern: Annotated[
        str | None,
        typer.Option(help="An RE2 pattern of tools' answers that are errors; other answers without a mark are none."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="The text's encoding, such as latin-1; else UTF-8, or as its mark says.")
    ] = None,
    desk: Annotated[
        str | None, typer.Option(help="The desk of a tau-bench file: airline, retail; else as its prompt says.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.importers import read_recordings

    if format == ["openai-evals"]:
        print_result(_graders(file), as_json=as_json)
        return
    try:
        named = format[0] if format and len(format) == 1 else _seen(file, format or [], encoding)
        records = read_recordings(
            _importer(named), file, checklists=checklists, error_pattern=error_pattern, encoding=encoding, desk=desk
        )
        seen: dict[str, JSON] = {} if format else {"format": named}
        with closing(_Import(file, store, project, checklists)) as running:
            for record in tracked(records, "importing"):
                running.add(record)
            print_result({**seen, **running.finish(named)}, as_json=as_json)
    except OSError as error:  # what was read is stored
        if error.errno not in _DISK:
            raise
        echo_err(printable(f"{file}: the disk failed: {error.strerror or error}. Type the same command again"))
        raise typer.Exit(1) from None


def _graders(file: Path) -> dict[str, JSON]:
    """Write the checklist of an evaluation's graders beside the caller's other files. Raises TraceError."""
    from cm2_agent.importers.json_records import Problem, read_records
    from cm2_agent.importers.openai_evals import read_graders
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_yaml import dump_checklist

    (first, *rest) = read_records(file)
    if isinstance(first, Problem) or rest:
        what = first if isinstance(first, Problem) else "holds several records"
        raise TraceError(f"{file}: {what}; expected the object of one evaluation")
    found = read_graders(first.value)
    written = {Path(f"{file.stem}.yaml"): dump_checklist(Checklist.from_model(found.checklist))}
    if found.checks is not None:
        written[Path(f"{file.stem}_checks.py")] = found.checks
    for path, text in written.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise TraceError(f"{path} exists and holds something else; move it, then type the same command again")
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    names = [str(path) for path in written]
    return {"items": len(found.checklist.items), "checklist": names[0], "checks": names[1] if names[1:] else None}


def _seen(file: Path, formats: list[str], encoding: str | None) -> str:
    """The name of the format that the file seems to be of, which is printed. Raises TraceError."""
    from cm2_agent.importers import formats as known
    from cm2_agent.importers import recording_format

    if len(formats) > 1:
        raise TraceError(f"{len(formats) + 1} arguments; expected one file. Type: cm2 import [FORMAT] FILE")
    if not file.exists() and (str(file) in known() or ":" in str(file)):
        raise TraceError(f"cm2 import {file}: which file? Type: cm2 import {file} FILE")
    found = recording_format(file, encoding=encoding)
    echo_err(printable(f"{file}: format {found.name} ({found.reason}); cm2 import FORMAT FILE decides otherwise"))
    return found.name


def _importer(format: str) -> str | Importer:
    """A format's name as it is, or the importer that MODULE:IMPORTER names. Raises TraceError."""
    if ":" not in format:
        return format
    try:
        found: Importer = load_function(format, "importer")
    except TaskError as error:
        raise TraceError(f"{error}. Type: cm2 import MODULE:IMPORTER FILE") from error
    return found


class _Import:
    """One file on its way into the store, which is opened with the first record that can be stored."""

    def __init__(self, file: Path, url: str, project: str, checklists: bool) -> None:
        self.file, self.url, self.project, self.checklists = file, url, project, checklists
        self.counts = {"imported": 0, "skipped": 0, "duplicates": 0}
        self.labels: list[Label] = []
        self.notes: set[str] = set()
        self.unknown_failures = 0
        self.first: Problem | None = None
        self._store: SQLStore | None = None

    @property
    def store(self) -> SQLStore:
        if self._store is None:
            self._store = open_store(self.url, project=self.project, create=True)
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def add(self, record: Imported | ImportedLabels | Problem) -> None:
        from cm2_agent.importers import ImportedLabels, Problem

        if isinstance(record, ImportedLabels):
            self.labels += record.labels
        elif isinstance(record, Problem):
            self._skip(record)
        else:
            store = self.store  # a store that cannot be opened is no fault of the record
            if record.note is not None:
                self.notes.add(record.note)
            try:
                self.counts["imported" if self._save(store, record) else "duplicates"] += 1
                self.unknown_failures += record.unknown_failures
            except StoreError as error:
                if meaning_of(error) == "away":  # the disk or the server, which no other record can do without
                    echo_err(printable(f"{error}. What came before is stored; type the same command again"))
                    raise typer.Exit(1) from None
                # this record contradicts what is stored; the others need not
                self._skip(Problem(line=record.line, number=record.number, reason=str(error)))
            except (AttributeError, TypeError, ValueError) as error:
                reason = f"the importer's trace cannot be stored: {type(error).__name__}: {error}"
                self._skip(Problem(line=record.line, number=record.number, reason=reason))

    def _save(self, store: SQLStore, record: Imported) -> bool:
        """Whether the trace is new. Tasks are stored where checklists were asked for: a task once stored cannot get a
        checklist later, and a first import may have gone without."""
        if self.checklists and record.task is not None:
            store.save_task(record.task)
        new = store.save_trace(record.trace)
        score = record.score
        if score is not None and (new or store.score(score.trace_id, score.reward_version) is None):
            store.save_score(score)
        return new

    def _skip(self, problem: Problem) -> None:
        self.counts["skipped"] += 1
        self.first = self.first or problem
        if self.counts["skipped"] <= SHOWN:
            echo_err(printable(f"{self.file}: {problem}; skipped"))

    def finish(self, format: str) -> dict[str, int]:
        """Store the labels and report what was skipped. Raises TraceError where nothing could be stored."""
        skipped = self.counts["skipped"]
        if self._store is None and not self.labels:
            raise TraceError(
                f"{self.file}: none of its {skipped} records is of format {format}; nothing was stored. The first:"
                f" {self.first}"
            )
        if skipped > SHOWN:
            echo_err(f"… and {skipped - SHOWN} more were skipped")
        for note in sorted(self.notes):
            echo_err(printable(f"note: {note}"))
        if self.unknown_failures:
            echo_err(
                f"warning: {self.unknown_failures} answers of tools do not tell whether the call failed: no_tool_error"
                " and succeeded are NULL there; --error-pattern says how errors read (import into a new store)"
            )
        if not self.labels:
            return self.counts
        found = self.store.save_labels(self.labels)
        if found.without_trace:
            echo_err(f"note: {found.without_trace} labels speak of traces that the store does not hold")
        return {
            "imported": self.counts["imported"] + found.new,
            "changed": found.changed,
            "skipped": skipped,
            "duplicates": self.counts["duplicates"] + found.same,
            "without_trace": found.without_trace,
        }
