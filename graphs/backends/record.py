"""Recordings of real tool calls: a file of one JSON object a line, written as the calls happen and read back for
replay; no database is needed."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from cm2_agent.errors import TaskError, ToolError
from cm2_agent.incidents import logger
from cm2_agent.types.task import RecordedCall
from cm2_agent.types.text import first_problem
from cm2_agent.types.tool_calls import ToolAnswer, ToolRequest

FORMAT = "cm2.recording"
VERSION = 1
_HEADER = json.dumps({"format": FORMAT, "version": VERSION})


class _Line(RecordedCall):
    """One line after the header. `seconds` is how long the call took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class CallRecorder:
    """Appends calls to a recording file, each written out before `add` returns; safe to use from several threads.

    A file that is there is continued; what a killed run left of its last line is dropped. The file is locked while it
    is open: one recorder writes to it at a time. Raises TaskError where the file is no recording of this version, and
    ToolError where it cannot be opened or is being written to.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import CallRecorder, ToolAnswer, ToolRequest, load_recording
    >>> path = Path(tempfile.mkdtemp()) / "calls.jsonl"
    >>> with CallRecorder(path) as recorder:
    ...     request = ToolRequest(tool=ToolSpec(name="get_order"), arguments={"id": 7})
    ...     recorder.add(request, ToolAnswer(content="shipped"), 0.2)
    >>> load_recording(path)[0].result
    'shipped'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise ToolError(
                f"{self.path}: cannot record calls there: {error.strerror}. Give a file in a folder that exists"
            ) from error
        try:
            self._take_over()
        except BaseException:
            self._file.close()
            raise

    def add(self, request: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
        """Write one call down. Raises ToolError where arguments or answer are not JSON, after `close`, and where the
        disk refuses."""
        line = _line(request, answer, seconds)
        with self._lock:
            if self._file.closed:
                raise ToolError(f"{self.path}: the call of {request.tool.name!r} came after the recorder was closed")
            try:
                self._write(line)
            except OSError as error:
                raise ToolError(
                    f"{self.path}: the call of {request.tool.name!r} could not be written: {error.strerror}"
                ) from error

    def close(self) -> None:
        """Closing twice is fine."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> CallRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ToolError(f"{self.path}: another recorder is writing to it; give each its own file") from error
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        torn = data[len(whole) :]
        if not whole and not _HEADER.encode().startswith(torn):
            raise TaskError(_foreign(self.path, torn.decode("utf-8", "replace")))
        if whole:
            for _ in _read(self.path, whole):  # before a byte of the file is changed
                pass
        if not whole:
            os.ftruncate(self._file.fileno(), 0)
            self._write(f"{_HEADER}\n".encode())
        elif torn and _last(self.path, torn) is None:
            os.ftruncate(self._file.fileno(), len(whole))
        elif torn:
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        """All of it or nothing: half a line within the file would make the rest unreadable."""
        descriptor = self._file.fileno()
        before = os.fstat(descriptor).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise


def load_recording(path: str | Path) -> list[RecordedCall]:
    """The calls of a recording, in the order of their answers, as a task's `recorded` and `ReplayTools` take them.

    What a killed run left of its last line is dropped, with a warning in the log.

    Args:
        path: A file that CallRecorder wrote (`cm2 run --record FILE`).

    Raises:
        TaskError: The file cannot be read, or a line, which is named, is no recording of this version.

    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import CallRecorder, ToolAnswer, ToolRequest, load_recording
    >>> with CallRecorder("calls.jsonl") as recorder:
    ...     request = ToolRequest(tool=ToolSpec(name="get_order"), arguments={"order_id": 7})
    ...     recorder.add(request, ToolAnswer(content="shipped"), seconds=0.2)
    >>> [(call.name, call.arguments, call.result) for call in load_recording("calls.jsonl")]
    [('get_order', {'order_id': 7}, 'shipped')]
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: cannot read the recording: {error.strerror}. Expected a file that CallRecorder wrote"
        ) from error
    whole = data[: data.rfind(b"\n") + 1]
    torn = data[len(whole) :]
    calls = list(_read(path, whole or data))
    last = _last(path, torn) if whole and torn else None
    return calls if last is None else [*calls, last]


def _last(path: str | Path, torn: bytes) -> RecordedCall | None:
    """The call of a last line without its end: whole but for that, or None, with a warning."""
    try:
        return _parsed(path, 0, torn)
    except TaskError:
        logger.warning("%s: its last line was cut off while it was written, and is left out", path)
        return None


def _read(path: str | Path, data: bytes) -> Iterator[RecordedCall]:
    header, *lines = data.split(b"\n")
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        found = None
    if found != {"format": FORMAT, "version": VERSION}:
        raise TaskError(_foreign(path, header.decode("utf-8", "replace"), found))
    for number, line in enumerate(lines, 2):
        if line.strip():
            yield _parsed(path, number, line)


def _parsed(path: str | Path, number: int, line: bytes) -> RecordedCall:
    """One line. By way of json, which unlike pydantic reads the half characters that a model may write."""
    try:
        read = _Line.model_validate(json.loads(line, parse_constant=_no_number))
    except ValidationError as error:
        problem = first_problem(error, whole="line", shown=80)
        raise TaskError(f"{path}:{number}: not a recorded call: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{path}:{number}: not JSON: {str(error)[:120]} (given {line[:80].decode('utf-8', 'replace')!r})"
        ) from error
    return RecordedCall(name=read.name, arguments=read.arguments, result=read.result, error=read.error)


def _line(request: ToolRequest, answer: ToolAnswer, seconds: float) -> bytes:
    fields: dict[str, Any] = {
        "name": request.tool.name,
        "arguments": dict(request.arguments),
        "result": answer.content,
        "error": None,
    }
    if answer.error:
        plain = isinstance(answer.content, str)
        fields |= {
            "result": None if plain else answer.content,
            "error": answer.content if plain else _text(answer.content),
        }
    try:
        line = json.dumps({**fields, "seconds": round(seconds, 6)}, ensure_ascii=False, allow_nan=False)
        _Line.model_validate(json.loads(line))
        if not _encodable(line):
            line = json.dumps(json.loads(line), ensure_ascii=True)
    except (TypeError, ValueError, RecursionError) as error:
        kinds = (
            f"arguments of type {type(request.arguments).__name__} and a result of type {type(answer.content).__name__}"
        )
        raise ToolError(
            f"the call of tool {request.tool.name!r} cannot be recorded: {str(error)[:200]}. It has {kinds}; a"
            " recording holds JSON: text, finite numbers, true, false, null, lists and objects with text as keys"
        ) from error
    return f"{line}\n".encode()


def _text(blocks: Any) -> str:
    """What an error of several content blocks says; the blocks themselves are recorded as its result."""
    texts = [block.get("text") if isinstance(block, dict) else block for block in blocks]
    return "\n".join(text for text in texts if isinstance(text, str))


def _encodable(text: str) -> bool:
    """False with half characters, which only JSON's escapes can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _foreign(path: str | Path, header: str, found: Any = None) -> str:
    expected = f"expected the first line {_HEADER}"
    if isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") != VERSION:
        known = "a newer" if isinstance(found.get("version"), int) and found["version"] > VERSION else "another"
        what = "upgrade cm2-agent, or record the calls again" if known == "a newer" else "record the calls again"
        return f"{path}:1: a recording of {known} version, {found.get('version')!r}; {expected}: {what}"
    what = f"its first line is {header[:120]!r}; {expected}: give a file that CallRecorder wrote"
    return f"{path}:1: not a recording: {what}"


__all__ = ["FORMAT", "VERSION", "CallRecorder", "load_recording"]
