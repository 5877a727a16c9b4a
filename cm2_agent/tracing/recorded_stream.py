"""A stream of a client's whose pieces are gathered on their way to the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

__all__ = ["AsyncRecordedStream", "RecordedCall", "RecordedStream"]


class RecordedCall(Protocol):
    """A request that was begun, of either API. `end` may be called again, and after `fail`."""

    def answered(self, response: Any) -> Any:
        """A whole response, which goes on to the caller."""

    def chunk(self, piece: Any) -> None:
        """A piece of a stream."""

    def fail(self, error: BaseException) -> None:
        """The request failed."""

    def end(self) -> None:
        """Nothing more comes."""


class _Recorded:
    """What a stream of either kind has: its call, and everything else of the client's own."""

    def __init__(self, stream: Any, call: RecordedCall) -> None:
        self._stream, self._call = stream, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __del__(self) -> None:
        self._call.end()


class RecordedStream(_Recorded):
    """A stream of the client's, whose chunks are gathered on their way; everything else is the stream's own."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            piece = next(self._stream)
        except StopIteration:
            self._call.end()
            raise
        except BaseException as error:
            self._call.fail(error)
            raise
        self._call.chunk(piece)
        return piece

    def __enter__(self) -> RecordedStream:
        self._stream.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._call.end()
        self._stream.__exit__(*exception)

    def close(self) -> None:
        self._call.end()
        self._stream.close()


class AsyncRecordedStream(_Recorded):
    """As `RecordedStream`, of an asynchronous client."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            piece = await self._stream.__anext__()
        except StopAsyncIteration:
            self._call.end()
            raise
        except BaseException as error:
            self._call.fail(error)
            raise
        self._call.chunk(piece)
        return piece

    async def __aenter__(self) -> AsyncRecordedStream:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        self._call.end()
        await self._stream.__aexit__(*exception)

    async def close(self) -> None:
        self._call.end()
        await self._stream.close()
