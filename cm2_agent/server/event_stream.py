"""Server-sent events: a stream of bytes in its events, wherever the network cut it."""

from __future__ import annotations

import re

__all__ = ["EventSplitter", "data_of", "split_events", "with_data"]

_END = re.compile(rb"(?:\r\n|\n|\r){2}")  # an empty line after the event's last one
_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Gives what has come of whole events, each with the empty line that ends it. `rest` is the beginning of another.

    >>> splitter = EventSplitter()
    >>> splitter.feed(b"data: 1\\n"), splitter.feed(b"\\ndata: 2\\n\\nda"), splitter.rest
    (b'', b'data: 1\\n\\ndata: 2\\n\\n', b'da')
    """

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events, joined; nothing where none has come to its end."""
        known = len(self.rest)
        whole = self.rest + data if known else data
        if b"\r" not in whole:
            end = whole.rfind(b"\n\n", max(0, known - 1)) + 2
            end = end if end > 1 else 0
        else:
            ends = [match.end() for match in _END.finditer(whole, max(0, known - 3))]
            if ends and ends[-1] == len(whole) and whole.endswith(b"\r"):
                ends.pop()  # the next byte may be the other half of this end of a line
            end = ends[-1] if ends else 0
        self.rest = whole[end:]
        return whole[:end]


def split_events(whole: bytes) -> list[bytes]:
    """The events of a stream, or of a part that ends with one; joined they are what was given.

    >>> split_events(b"data: 1\\n\\ndata: 2\\r\\n\\r\\ndata: 3")
    [b'data: 1\\n\\n', b'data: 2\\r\\n\\r\\n', b'data: 3']
    """
    if b"\r" not in whole:
        events = whole.split(b"\n\n")
        last = events.pop()
        return [event + b"\n\n" for event in events] + ([last] if last else [])
    found, start = [], 0
    for match in _END.finditer(whole):
        found.append(whole[start : match.end()])
        start = match.end()
    return [*found, whole[start:]] if start < len(whole) else found


def data_of(event: bytes) -> bytes | None:
    """What an event says, None where it has no data, as a comment that keeps the connection open.

    >>> data_of(b'data: {"a": 1}\\n\\n'), data_of(b": keep-alive\\n\\n"), data_of(b"event: e\\ndata:1\\ndata: 2\\n\\n")
    (b'{"a": 1}', None, b'1\\n2')
    """
    if _is_plain(event):
        return event[5:-2].strip()
    lines = [line[5:].strip() for line in _LINE.split(event.removeprefix(_BOM)) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data in one line; its other lines and its end stay."""
    if _is_plain(event):
        return b"data: " + data + b"\n\n"
    kept = [line for line in _LINE.split(event.removeprefix(_BOM)) if line and not line.startswith(b"data:")]
    end = b"\r\n" if b"\r\n" in event else b"\r" if b"\r" in event else b"\n"
    return end.join([*kept, b"data: " + data, b"", b""])


def _is_plain(event: bytes) -> bool:
    """Whether it is one line of data, as nearly all are."""
    return event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event
