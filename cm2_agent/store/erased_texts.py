"""What was erased as texts to look for, and the search for them: in the rows of the database, and in its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, LargeBinary, Text, select

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import body_of, load, unseal
from cm2_agent.store.schema import contents, metadata
from cm2_agent.types.json_values import JSON, scalars

SHORTEST, SHORTEST_ID = 12, 6
"""Characters of texts and ids that are looked for: shorter ones are found anywhere."""
WINDOW = 48
"""Characters of a text that are looked for at its beginning, in its middle and at its end: a long one lies in pieces in
a file."""
PACKED = 512
"""Bytes at the end of a packed content that are looked for."""
MOST = 600
"""Texts that are looked for, and packed contents."""
_BLOCK = 1 << 22
_FORMAT = frozenset({"type", "role"})
"""Keys whose values are words of the format."""


class Texts:
    """Texts and ids of what was erased."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._texts: dict[str, None] = {}
        self._packed: dict[bytes, None] = {}
        self._made: tuple[int, str, list[str]] = (-1, "", [])

    def add_id(self, id: str | None) -> None:
        if id is not None and len(id) >= SHORTEST_ID:
            self._ids[id] = None

    def add(self, sealed: str | None) -> None:
        """A text as it lies in a column."""
        if sealed is not None:
            self._add(unseal(sealed))

    def add_json(self, *columns: str | None) -> None:
        """Every text in JSON as it lies in a column."""
        for column in columns:
            for leaf in _texts(load(column)) if column is not None else ():
                self._add(leaf)

    def _add(self, text: str) -> None:
        if len(text.strip()) >= SHORTEST:
            self._texts[text.strip()] = None

    def add_packed(self, packed: bytes | None) -> None:
        """A content as it lies in a column that no text shows."""
        if packed is not None and len(self._packed) < MOST:
            self._packed[bytes(packed)[-PACKED:]] = None

    def packed(self) -> list[bytes]:
        """The ends of the packed contents."""
        return list(self._packed)

    def shared_with(self, body: str) -> bool:
        """Whether JSON as it lies in a column holds one of the texts, or quotes from one."""
        leaves = [leaf.strip() for leaf in _texts(load(body)) if len(leaf.strip()) >= SHORTEST]
        return self.quoted_in(body) or any(leaf in self._searched()[1] for leaf in leaves)

    def quoted_in(self, sealed: str) -> bool:
        """Whether a column holds one of the texts or ids."""
        text = unseal(sealed)
        return any(needle in text for needle in self.needles())

    def needles(self) -> list[str]:
        """What is looked for: ids, and windows of the texts, as text and as JSON spells it; the longest texts first."""
        return self._searched()[2]

    def _searched(self) -> tuple[int, str, list[str]]:
        """How many texts there were, all of them together, and the needles."""
        count = len(self._ids) + len(self._texts)
        if self._made[0] != count:
            self._made = count, "\n".join(self._texts), self._needles()
        return self._made

    def _needles(self) -> list[str]:
        found: dict[str, None] = dict(self._ids)
        for text in sorted(self._texts, key=len, reverse=True):
            if len(found) >= MOST:
                break
            middle = max(0, len(text) // 2 - WINDOW // 2)
            for window in (text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]):
                for spelled in (window, json.dumps(window, ensure_ascii=False)[1:-1]):
                    if len(spelled) >= SHORTEST:
                        found[spelled] = None
        return [needle for needle in found if _searchable(needle)]


def held_by(connection: Connection, needles: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """How many of the needles each column of the database holds, and those that none does."""
    held: dict[str, int] = {}
    left = list(needles)
    seen: set[str] = set()
    packed = connection.execution_options(yield_per=1000).execute(
        select(contents.c.body, contents.c.packed).where(contents.c.packed.is_not(None))
    )
    for row in packed if left else ():
        text = body_of(row)
        seen.update(needle for needle in left if needle in text)
    if seen:
        held["contents.packed"] = len(seen)
    sqlite = connection.dialect.name == "sqlite"
    given = json.dumps(left) if sqlite else left
    for table in metadata.sorted_tables:
        for column in table.columns:
            if not isinstance(column.type, Text | LargeBinary):
                continue
            binary = isinstance(column.type, LargeBinary)
            name = f'"{table.name}"."{column.name}"'
            if sqlite:
                has = f"instr({name}, {'CAST(n.value AS BLOB)' if binary else 'n.value'})"
                needles_of = "SELECT n.value FROM json_each(?) AS n"
            else:
                has = f"position(convert_to(n, 'UTF8') IN {name})" if binary else f"strpos({name}, n)"
                needles_of = "SELECT n FROM unnest(%s::text[]) AS n"
            sql = f'{needles_of} WHERE EXISTS (SELECT 1 FROM "{table.name}" WHERE {has} > 0)'  # noqa: S608 (our tables)
            rows = {row[0] for row in connection.exec_driver_sql(sql, (given,))}
            if rows:
                held[f"{table.name}.{column.name}"] = len(rows)
                seen |= rows
    return held, [needle for needle in left if needle not in seen]


def found_in(files: Iterable[Path], needles: Sequence[str], packed: Sequence[bytes] = ()) -> dict[str, int]:
    """How many of the needles and of the packed contents the bytes of each file hold; files that hold none are left
    out. Raises StoreError."""
    wanted = [*(needle.encode() for needle in needles), *packed]
    longest = max(map(len, wanted), default=1)
    found: dict[str, int] = {}
    for file in files:
        left, rest = set(wanted), b""
        try:
            with file.open("rb") as stream:
                while left and (block := stream.read(_BLOCK)):
                    block = rest + block
                    left -= {needle for needle in left if needle in block}
                    rest = block[-longest:]
        except OSError as error:
            raise StoreError(f"{file} cannot be searched: {error.strerror}; give a file that can be read") from error
        if len(left) < len(wanted):
            found[str(file)] = len(wanted) - len(left)
    return found


def _texts(value: JSON) -> Iterator[str]:
    """The texts within, but for the words of the format."""
    return (one for path, one in scalars(value) if isinstance(one, str) and _FORMAT.isdisjoint(path))


def _searchable(needle: str) -> bool:
    try:
        return "\0" not in needle and bool(needle.encode())
    except UnicodeEncodeError:
        return False
