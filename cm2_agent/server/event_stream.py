"""Server-sent events: a stream of bytes in its events, wherever the network cut it."""

from __future__ import annotations

import re

__all__ = ["EventSplitter", "data_of", "events_of", "with_data"]

_END = re.compile(rb"(?:\r\n|\n|\r){2}")  # an empty line after the event's last one
_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Gives the events that have come to their end, each with the empty line that ends it: what is given, joined, is
    what was fed, up to `rest`.

    >>> splitter = EventSplitter()
    >>> splitter.feed(b"data: 1\\n"), splitter.feed(b"\\ndata: 2\\n\\nda"), splitter.rest
    ([], [b'data: 1\\n\\n', b'data: 2\\n\\n'], b'da')
    """

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        known = len(self.rest)
        self.rest += data
        if b"\r" not in self.rest:
            end = self.rest.rfind(b"\n\n", max(0, known - 1))
            if end < 0:
                return []
            whole, self.rest = self.rest[:end], self.rest[end + 2 :]
            return [event + b"\n\n" for event in whole.split(b"\n\n")]
        found, start = [], 0
        for match in _END.finditer(self.rest, max(0, known - 3)):
            if match.end() == len(self.rest) and match[0].endswith(b"\r"):
                break  # the next byte may be the other half of this end of a line
            found.append(self.rest[start : match.end()])
            start = match.end()
        self.rest = self.rest[start:]
        return found


def events_of(stream: bytes) -> list[bytes]:
    """The events of a whole stream; the last may lack its end."""
    splitter = EventSplitter()
    found = splitter.feed(stream)
    return [*found, splitter.rest] if splitter.rest else found


def data_of(event: bytes) -> bytes | None:
    """What an event says, None where it has no data, as a comment that keeps the connection open.

    >>> data_of(b'data: {"a": 1}\\n\\n'), data_of(b": keep-alive\\n\\n"), data_of(b"event: e\\r\\ndata:1\\r\\ndata: 2\\r\\n\\r\\n")
    (b'{"a": 1}', None, b'1\\n2')
    """
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[5:-2].strip()
    lines = [line[5:].strip() for line in _LINE.split(event.removeprefix(_BOM)) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data in one line; its other lines and its end stay."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return b"data: " + data + b"\n\n"
    kept = [line for line in _LINE.split(event.removeprefix(_BOM)) if line and not line.startswith(b"data:")]
    end = b"\r\n" if b"\r\n" in event else b"\r" if b"\r" in event else b"\n"
    return end.join([*kept, b"data: " + data, b"", b""])
