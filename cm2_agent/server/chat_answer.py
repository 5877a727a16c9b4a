"""An upstream's answer, whole or streamed: what the client gets of it, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from cm2_agent.server.chat_request import Asked

__all__ = ["Answer"]

_DATA = b"data:"
_DONE = b"[DONE]"
_END = b"\n\n"
_MARKS = (b"token_ids", b"sglext", b'"logprobs"')


class Answer:
    """Takes an answer as it comes. `parts` are the response, or the chunks of the stream, as the server sent them; what
    `feed` returns is for the client: without what it did not ask for. `mark` is written into the messages as their id,
    by which a client's framework knows the call again."""

    def __init__(self, asked: Asked, *, stream: bool, mark: str | None = None) -> None:
        self.asked, self.stream, self.mark = asked, stream, mark
        self.parts: list[dict[str, Any]] = []
        self._rest = b""
        self.finished = False
        self._failed = False

    @property
    def problem(self) -> str | None:
        """Why what came is no answer though its status says so, None where it is one."""
        if self._failed:
            return "the server behind the proxy: an error within its answer"
        return "the server behind the proxy: no answer that can be read" if self.finished and not self.parts else None

    def feed(self, data: bytes) -> bytes:
        """What the client gets of this piece."""
        self._rest += data.replace(b"\r\n", b"\n") if self.stream and b"\r" in data else data
        if not self.stream:
            return b""
        end = self._rest.rfind(_END)
        if end < 0:
            return b""
        whole, self._rest = self._rest[: end + 2], self._rest[end + 2 :]
        return b"".join([self._event(event) for event in whole.split(_END) if event])

    def end(self) -> bytes:
        """What is left when nothing more comes."""
        rest, self._rest = self._rest, b""
        if self.stream:
            return self._event(rest.strip(b"\n")) if rest.strip() else b""
        self.finished = True
        try:
            body = orjson.loads(rest)
        except ValueError:
            return rest
        if not isinstance(body, dict):
            return rest
        self.parts.append(body)
        self._failed = bool(body.get("error"))
        return orjson.dumps(self._stripped(body, "message"))

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(_DATA):
            return event + _END
        data = event[len(_DATA) :].strip()
        if data == _DONE:
            self.finished = True
            return event + _END
        try:
            chunk = orjson.loads(data)
        except ValueError:
            return event + _END
        if not isinstance(chunk, dict):
            return event + _END
        self.parts.append(chunk)
        self._failed = self._failed or bool(chunk.get("error"))
        if self.asked.strip_usage and not chunk.get("choices") and chunk.get("usage") is not None:
            return b""
        if self.mark is None and not any(mark in data for mark in _MARKS):
            return event + _END
        return b"data: " + orjson.dumps(self._stripped(chunk, "delta")) + _END

    def _stripped(self, data: Mapping[str, Any], message: str) -> dict[str, Any]:
        asked = self.asked
        out = dict(data)
        if asked.strip_ids:
            for name in ("prompt_token_ids", "sglext"):
                out.pop(name, None)
        choices = data.get("choices")
        if isinstance(choices, list):
            out["choices"] = [self._choice(one, message) if isinstance(one, dict) else one for one in choices]
        return out

    def _choice(self, choice: Mapping[str, Any], message: str) -> dict[str, Any]:
        out = dict(choice)
        if self.asked.strip_ids:
            for name in ("token_ids", "prompt_token_ids"):
                out.pop(name, None)
        if self.asked.strip_logprobs and "logprobs" in out:
            out["logprobs"] = None
        if self.mark is not None and isinstance(out.get(message), dict):
            out[message] = {**out[message], "id": f"{self.mark}-{choice.get('index') or 0}"}
        return out
