"""An upstream's answer on its way to the client: as it came, or without what the client did not ask for."""

from __future__ import annotations

from typing import Any

from cm2_agent.server.chat_request import Asked
from cm2_agent.server.event_stream import EventSplitter, data_of, split_events, with_data
from cm2_agent.server.wire_json import dumps, loads

__all__ = ["DONE", "Answer"]

DONE = b"[DONE]"
_ESCAPE = b"\\u"  # a key may be written with escapes
_TAIL = 64


class Answer:
    """Takes an answer as it comes; what `feed` returns is for the client. A stream of which nothing has to be taken out
    passes byte for byte, and so do the events that hold nothing of it. `mark` is written into the messages as their id,
    by which a client's framework knows the call again."""

    def __init__(self, asked: Asked, *, mark: str | None = None) -> None:
        self.asked, self.mark = asked, mark
        self.stream = False
        self._pieces: list[bytes] = []
        self._done = False
        self._events = EventSplitter()
        self._marks: list[bytes] = []
        if asked.strip_ids:
            self._marks += [b"token_ids", b"sglext"]
        if asked.strip_logprobs:
            self._marks.append(b'"logprobs"')
        if asked.strip_usage:
            self._marks.append(b'"usage"')
        if self._marks:
            self._marks.append(_ESCAPE)

    @property
    def raw(self) -> bytes:
        """What came, as the server sent it."""
        return b"".join(self._pieces)

    @property
    def finished(self) -> bool:
        """Whether a stream came to its end."""
        if self._done or not self.stream:
            return self._done
        tail = b""
        for piece in reversed(self._pieces):
            tail = piece[-_TAIL:] + tail
            if len(tail) > _TAIL:
                break
        lines = tail.splitlines()[len(tail) > _TAIL :]  # the first may be the end of a longer one
        return any(line.startswith(b"data:") and line[5:].strip() == DONE for line in lines)

    def feed(self, data: bytes) -> bytes:
        """What the client gets of this piece."""
        self._pieces.append(data)
        if not self.stream:
            return b""
        if not self._marks and self.mark is None:
            return data
        whole = self._events.feed(data)
        if not whole or not self._concerns(whole):
            return whole
        return b"".join([self._edited(event) for event in split_events(whole)])

    def end(self) -> bytes:
        """What is left when nothing more comes."""
        if self.stream:
            rest, self._events.rest = self._events.rest, b""
            return self._edited(rest) if rest else b""
        self._done = True
        raw = self.raw
        body = self._read(raw)
        return raw if body is None else dumps(self._stripped(body, "message"))

    def _edited(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None:
            return event
        if data == DONE:
            self._done = True
            return event
        chunk = self._read(data)
        if chunk is None:
            return event
        if self.asked.strip_usage and not chunk.get("choices") and chunk.get("usage") is not None:
            return b""
        return with_data(event, dumps(self._stripped(chunk, "delta")))

    def _read(self, data: bytes) -> dict[str, Any] | None:
        """The body or chunk in which there may be something to change, else None."""
        if not self._concerns(data):
            return None
        try:
            found = loads(data)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _concerns(self, data: bytes) -> bool:
        """Whether there may be something in it to change."""
        return self.mark is not None or max(map(data.find, self._marks), default=-1) >= 0

    def _stripped(self, data: dict[str, Any], message: str) -> dict[str, Any]:
        asked = self.asked
        if asked.strip_ids:
            data.pop("prompt_token_ids", None)
            data.pop("sglext", None)
        choices = data.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if asked.strip_ids:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
            if asked.strip_logprobs and "logprobs" in choice:
                choice["logprobs"] = None
            if self.mark is not None and isinstance(choice.get(message), dict):
                choice[message]["id"] = f"{self.mark}-{choice.get('index') or 0}"
        return data
