"""Packed numbers: token ids and logprobs of a dialogue, held once, however many of its calls read them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

if TYPE_CHECKING:
    from numpy.typing import NDArray

N = TypeVar("N", int, float)


class Stretch(NamedTuple):
    """Numbers that stand beside each other in a buffer, which only ever grows at its end."""

    buffer: array[Any]
    start: int
    stop: int


class Packed(Sequence[N]):
    """Immutable numbers of 4 or 8 bytes each. It compares, hashes, adds and prints as a tuple of them does.

    It refers to stretches of buffers: the prompt of a model call and that of the next one, which extends it, are the
    same memory. `numpy.asarray` gives them as an array, without a copy where they are one stretch.

    >>> from cm2_agent.types.packed import Packed
    >>> ids = Packed.of_ids([3, 1, 4, 1, 5])
    >>> ids, ids[:2], ids == (3, 1, 4, 1, 5), hash(ids[1:3]) == hash((1, 4))
    ((3, 1, 4, 1, 5), (3, 1), True, True)
    """

    __slots__ = ("_length", "_stretches")

    def __init__(self, stretches: Iterable[Stretch] = ()) -> None:
        self._stretches = tuple(stretches)
        self._length = sum(stop - start for _, start, stop in self._stretches)

    @classmethod
    def of(cls, buffer: array[N]) -> Packed[N]:
        """All of a buffer, which belongs to the sequence from now on."""
        return cls((Stretch(buffer, 0, len(buffer)),) if buffer else ())

    @staticmethod
    def of_ids(ids: Iterable[int]) -> Packed[int]:
        """Token ids, packed as int32, or as int64 where one does not fit (no tokenizer has such an id). Raises
        TypeError where one is no integer."""
        if isinstance(ids, Packed):
            return ids
        listed = ids if isinstance(ids, (list, tuple)) else list(ids)
        try:
            return Packed.of(array("i", listed))
        except OverflowError:
            return Packed.of(array("q", listed))

    def followed_by(self, numbers: array[N]) -> Packed[N]:
        """These numbers and more: in the same buffer where nothing else follows there, so that a dialogue that is read
        call by call is one buffer. For who owns the buffers: it is not safe for threads."""
        if not numbers:
            return self
        if self._stretches:
            *before, (buffer, start, stop) = self._stretches
            if stop == len(buffer) and buffer.typecode == numbers.typecode:
                buffer.extend(numbers)
                return Packed((*before, Stretch(buffer, start, len(buffer))))
        return Packed((*self._stretches, Stretch(numbers, 0, len(numbers))))

    def begins_with(self, prefix: Sequence[N]) -> bool:
        """Whether these are the first numbers; what both hold in the same memory is not compared."""
        if len(prefix) > self._length:
            return False
        if not isinstance(prefix, Packed):
            return self[: len(prefix)] == prefix
        same = 0
        for mine, other in zip(self._stretches, prefix._stretches, strict=False):
            if mine.buffer is not other.buffer or mine.start != other.start:
                break
            same += min(mine.stop, other.stop) - mine.start
            if mine.stop != other.stop:
                break
        if same == len(prefix):
            return True
        return self[same : len(prefix)].tolist() == prefix[same:].tolist()

    def tolist(self) -> list[N]:
        """The numbers as a list of Python's own."""
        if len(self._stretches) == 1:
            return _cut(self._stretches[0]).tolist()
        return list(chain.from_iterable(_cut(one).tolist() for one in self._stretches))

    def flat(self, code: str) -> array[N] | None:
        """A copy of the numbers in one array of this type code; None where they are held in another type."""
        if any(one.buffer.typecode != code for one in self._stretches):
            return None
        held: array[N] = array(code)
        for one in self._stretches:
            held.extend(_cut(one))
        return held

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[N]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, index: int) -> N: ...
    @overload
    def __getitem__(self, index: slice) -> Packed[N]: ...
    def __getitem__(self, index: int | slice) -> N | Packed[N]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step != 1:
                numbers = self.tolist()[index]
                return Packed.of(array(self._stretches[0].buffer.typecode, numbers)) if numbers else Packed()
            return Packed(self._between(start, stop))
        place = index + self._length if index < 0 else index
        if place >= 0:
            for buffer, start, stop in self._stretches:
                if place < stop - start:
                    number: N = buffer[start + place]
                    return number
                place -= stop - start
        raise IndexError(f"index {index} of {self._length} numbers")

    def _between(self, first: int, last: int) -> Iterator[Stretch]:
        for buffer, start, stop in self._stretches:
            size = stop - start
            if first < size and last > 0 and first < last:
                yield Stretch(buffer, start + max(first, 0), start + min(last, size))
            first, last = first - size, last - size

    def joined(self, other: Packed[N]) -> Packed[N]:
        """These numbers and then those, in the memory that they have."""
        if self._stretches and other._stretches:
            *before, left = self._stretches
            right, *after = other._stretches
            if left.buffer is right.buffer and left.stop == right.start:
                return Packed((*before, Stretch(left.buffer, left.start, right.stop), *after))
        return Packed((*self._stretches, *other._stretches))

    def __add__(self, other: Sequence[N]) -> Sequence[N]:
        if isinstance(other, Packed):
            return self.joined(other)
        return tuple(self) + other if isinstance(other, tuple) else NotImplemented

    def __radd__(self, other: Sequence[N]) -> Sequence[N]:
        return other + tuple(self) if isinstance(other, tuple) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed):
            return self._length == other._length and self.begins_with(other)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __lt__(self, other: Sequence[N]) -> bool:
        return tuple(self) < tuple(other) if isinstance(other, (tuple, Packed)) else NotImplemented

    def __le__(self, other: Sequence[N]) -> bool:
        return tuple(self) <= tuple(other) if isinstance(other, (tuple, Packed)) else NotImplemented

    def __gt__(self, other: Sequence[N]) -> bool:
        return tuple(self) > tuple(other) if isinstance(other, (tuple, Packed)) else NotImplemented

    def __ge__(self, other: Sequence[N]) -> bool:
        return tuple(self) >= tuple(other) if isinstance(other, (tuple, Packed)) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __copy__(self) -> Packed[N]:
        return self

    def __deepcopy__(self, memo: Any) -> Packed[N]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._stretches:
            return (Packed, ())
        return (Packed.of, (array(self._stretches[0].buffer.typecode, self.tolist()),))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        views: list[NDArray[Any]] = [
            np.frombuffer(buffer, dtype=np.dtype(buffer.typecode))[start:stop]
            for buffer, start, stop in self._stretches
        ]
        if len(views) == 1 and not copy:
            views[0].flags.writeable = False
            found = views[0]
        else:
            if copy is False:
                raise ValueError("numbers in several buffers cannot be an array without a copy")
            found = np.concatenate(views) if views else np.empty(0, dtype=np.int32)
        return found if dtype is None else found.astype(dtype, copy=False)


def _cut(stretch: Stretch) -> array[Any]:
    buffer, start, stop = stretch
    return buffer if start == 0 and stop == len(buffer) else buffer[start:stop]


__all__ = ["Packed", "Stretch"]
