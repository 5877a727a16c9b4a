"""The library's database: copies and titles in SQLite, and the three things that can be done with them.

A file of the sample app, which was written without knowing this project: it imports nothing of it.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from functools import lru_cache

NAMES = (
    "Harbor",
    "Meadow",
    "Lantern",
    "Orchard",
    "Thunder",
    "Willow",
    "Canyon",
    "Falcon",
    "Marble",
    "Saffron",
    "Glacier",
    "Comet",
    "Juniper",
    "Ember",
    "Tundra",
    "Velvet",
)
LETTERS = tuple(a + b for a in "QSVWXZJ" for b in "AEIOUY")  # of a barcode; its number is 10 to 99
BRANCHES = {"training": 600, "heldout": 240}  # the branches of the library and how many copies each holds

SCHEMA = """
CREATE TABLE titles (title TEXT PRIMARY KEY, waiting INTEGER NOT NULL);
CREATE TABLE copies (
    barcode TEXT PRIMARY KEY, title TEXT NOT NULL REFERENCES titles (title), shelf INTEGER NOT NULL,
    due INTEGER NOT NULL, later INTEGER NOT NULL, extended INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy of a title. `due` is the day on which it is due back, `later` the day once it is extended; `waiting` is
    how many readers wait for the title."""

    barcode: str
    title: str
    shelf: int
    due: int
    later: int
    waiting: int
    extended: bool = False


class UnknownError(LookupError):
    """There is no such copy or title."""


@dataclass(frozen=True)
class Catalog:
    """One reader's dialogue's own copy of the catalog: what one agent changes, no other sees."""

    connection: sqlite3.Connection

    def find_copy(self, barcode: str) -> str:
        """Title, shelf and due day of a copy, in words. Raises UnknownError."""
        copy = self.copy(barcode)
        return f"{copy.title}, shelf {copy.shelf}, due {copy.later if copy.extended else copy.due}"

    def count_waiting(self, title: str) -> str:
        """How many readers wait for a title, in words. Raises UnknownError."""
        row = self.connection.execute("SELECT waiting FROM titles WHERE title = ?", (title,)).fetchone()
        if row is None:
            raise UnknownError(title)
        return f"readers, waiting {row[0]}"

    def extend_loan(self, barcode: str) -> str:
        """Extend the loan of a copy, whoever waits: whether it may be is for the desk to know. Raises UnknownError."""
        later = self.copy(barcode).later
        with self.connection:
            self.connection.execute("UPDATE copies SET extended = 1 WHERE barcode = ?", (barcode,))
        return f"extended, until {later}"

    def copy(self, barcode: str) -> Copy:
        """The copy's row as it is now. Raises UnknownError."""
        query = (
            "SELECT barcode, title, shelf, due, later, waiting, extended FROM copies JOIN titles USING (title)"
            " WHERE barcode = ?"
        )
        row = self.connection.execute(query, (barcode,)).fetchone()
        if row is None:
            raise UnknownError(barcode)
        return Copy(
            barcode=row[0],
            title=row[1],
            shelf=row[2],
            due=row[3],
            later=row[4],
            waiting=row[5],
            extended=bool(row[6]),
        )

    def extended(self) -> set[str]:
        """The barcodes of all copies whose loan was extended."""
        return {row[0] for row in self.connection.execute("SELECT barcode FROM copies WHERE extended = 1")}

    def close(self) -> None:
        self.connection.close()


def open_catalog(branch: str = "training") -> Catalog:
    """A fresh in-memory database of one of the `BRANCHES`, for one dialogue. Raises ValueError for another branch."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.deserialize(_image(branch))
    return Catalog(connection)


@lru_cache
def _image(branch: str) -> bytes:
    """The database file of a branch; a dialogue's copy is then a memory copy of some 60 KB."""
    rows = copies(branch)
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO titles VALUES (?, ?)", [(row.title, row.waiting) for row in rows])
        connection.executemany(
            "INSERT INTO copies VALUES (?, ?, ?, ?, ?, 0)",
            [(row.barcode, row.title, row.shelf, row.due, row.later) for row in rows],
        )
        connection.commit()
        return connection.serialize()


@lru_cache
def copies(branch: str) -> tuple[Copy, ...]:
    """All copies of a branch, always the same ones. No barcode and no title is in both branches."""
    if branch not in BRANCHES:
        raise ValueError(f"no branch {branch!r}; there are {', '.join(BRANCHES)}")
    rng = random.Random(f"copies:{branch}")
    barcodes = [
        f"{letters}/{n}" for letters in LETTERS for n in range(10, 100) if heldout(letters, n) == (branch == "heldout")
    ]
    titles = [f"{name} vol. {n}" for name in NAMES for n in range(10, 100) if heldout(name, n) == (branch == "heldout")]
    count = BRANCHES[branch]
    chosen = zip(rng.sample(barcodes, count), rng.sample(titles, count), strict=True)
    # For half of the titles nobody waits, so that always extending is right as often as never doing it.
    return tuple(
        Copy(
            barcode=barcode,
            title=title,
            shelf=rng.randint(10, 99),
            due=rng.randint(10, 54),
            later=rng.randint(55, 99),
            waiting=0 if number % 2 == 0 else rng.randint(1, 9),
        )
        for number, (barcode, title) in enumerate(chosen)
    )


def heldout(word: str, number: int) -> bool:
    """Whether the barcode or title made of these two is held out for evaluation: one in five."""
    place = LETTERS.index(word) if word in LETTERS else NAMES.index(word)
    return (place + 2 * number) % 5 == 0
