"""What is stored once under its address: a message, a tool's definition or a list of tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cm2_agent.errors import StoreError, TraceError
from cm2_agent.store.codec import dump, pack_text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec, reads_back


class Content(NamedTuple):
    """A message, tool definition or list of tools that is to be stored once, spelled out only if it is not there."""

    kind: str
    value: Message | ToolSpec | list[str]
    where: str
    body: str | None = None

    def row(self, digest: bytes) -> tuple[bytes, str, str | None, bytes | None]:
        """Raises StoreError for a content that a reader of the store would refuse: every later command would fail on
        it."""
        if self.body is not None and isinstance(self.value, Message) and reads_back(self.value):
            return self._row(digest, self.body)
        value: JSON = self.value if isinstance(self.value, list) else self.value.to_json()
        read = {"message": Message.from_json, "tool": ToolSpec.from_json}.get(self.kind)
        try:
            if read is not None:
                read(value)
        except TraceError as error:
            raise StoreError(f"{self.where}: {error}") from error
        return self._row(digest, dump(value, f"{self.where}: a {self.kind}") if self.body is None else self.body)

    def _row(self, digest: bytes, body: str) -> tuple[bytes, str, str | None, bytes | None]:
        packed = pack_text(body)
        return digest, self.kind, body if packed is None else None, packed


class KnownContents:
    """The addresses of contents that are known to be stored: bounded, at least the latest half of `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._newer: dict[bytes, None] = {}
        self._older: dict[bytes, None] = {}

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the addresses that are not known."""
        return set(digests).difference(self._newer, self._older)

    def add(self, digests: Iterable[bytes]) -> None:
        if len(self._newer) > self._size // 2:
            self._older, self._newer = self._newer, {}
        self._newer.update(dict.fromkeys(digests))

    def clear(self) -> None:
        self._newer, self._older = {}, {}


__all__ = ["Content", "KnownContents"]
