"""The desk's database: orders and stock in SQLite, and the three things that can be done with them.

A file of the sample app, which was written without knowing this project: it imports nothing of it.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from functools import lru_cache

ITEMS = (
    "lamp",
    "chair",
    "desk",
    "sofa",
    "mirror",
    "rug",
    "shelf",
    "clock",
    "vase",
    "bench",
    "stool",
    "table",
    "frame",
    "basket",
    "pillow",
    "blanket",
    "candle",
    "kettle",
    "teapot",
    "mug",
)
SERIES = tuple(a + b for a in "BCDFGHK" for b in "LMNPRT")  # the letters of an order id; its number is 100 to 199
STATUSES = ("open", "shipped", "delivered")
BOOKS = {"training": 600, "heldout": 240}  # order books and how many orders each holds

SCHEMA = """
CREATE TABLE stock (item TEXT PRIMARY KEY, pieces INTEGER NOT NULL);
CREATE TABLE orders (
    id TEXT PRIMARY KEY, item TEXT NOT NULL REFERENCES stock (item), status TEXT NOT NULL,
    day INTEGER NOT NULL, price INTEGER NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A row of the order book. `day` is the day of delivery, `price` what is paid back on cancelling."""

    id: str
    item: str
    status: str
    day: int
    price: int
    cancelled: bool = False


class UnknownError(LookupError):
    """There is no such order or item."""


@dataclass(frozen=True)
class OrderDesk:
    """One customer dialogue's own copy of the shop: what one agent changes, no other sees."""

    connection: sqlite3.Connection

    def get_order(self, order_id: str) -> str:
        """Item, status ("cancelled" once it is), day of delivery and price of an order, in words. Raises
        UnknownError."""
        order = self.order(order_id)
        status = "cancelled" if order.cancelled else order.status
        return f"item {order.item}, status {status}, day {order.day}, price {order.price}"

    def check_stock(self, item: str) -> str:
        """How many pieces of an item the shop has, in words. Raises UnknownError."""
        return f"{item} in stock: {self.pieces(item)}"

    def cancel_order(self, order_id: str) -> str:
        """Cancel an order, whatever its status: whether it may be cancelled is for the desk to know. Raises
        UnknownError."""
        with self.connection:
            done = self.connection.execute("UPDATE orders SET cancelled = 1 WHERE id = ?", (order_id,))
        if not done.rowcount:
            raise UnknownError(order_id)
        return "done"

    def pieces(self, item: str) -> int:
        """How many pieces of an item the shop has. Raises UnknownError."""
        row = self.connection.execute("SELECT pieces FROM stock WHERE item = ?", (item,)).fetchone()
        if row is None:
            raise UnknownError(item)
        return int(row[0])

    def order(self, order_id: str) -> Order:
        """The order's row as it is now. Raises UnknownError."""
        query = "SELECT id, item, status, day, price, cancelled FROM orders WHERE id = ?"
        row = self.connection.execute(query, (order_id,)).fetchone()
        if row is None:
            raise UnknownError(order_id)
        return Order(id=row[0], item=row[1], status=row[2], day=row[3], price=row[4], cancelled=bool(row[5]))

    def cancelled(self) -> set[str]:
        """The ids of all cancelled orders."""
        return {row[0] for row in self.connection.execute("SELECT id FROM orders WHERE cancelled = 1")}

    def close(self) -> None:
        self.connection.close()


def open_desk(book: str = "training") -> OrderDesk:
    """A fresh in-memory database with one of the order `BOOKS`, for one dialogue. Raises ValueError for another
    book."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.deserialize(_image(book))
    return OrderDesk(connection)


@lru_cache
def _image(book: str) -> bytes:
    """The database file of a book; a dialogue's copy is then a memory copy of some 50 KB."""
    rows = orders(book)
    rng = random.Random(f"stock:{book}")
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO stock VALUES (?, ?)", [(o.item, rng.randint(10, 99)) for o in rows])
        connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, 0)", [(o.id, o.item, o.status, o.day, o.price) for o in rows]
        )
        connection.commit()
        return connection.serialize()


@lru_cache
def orders(book: str) -> tuple[Order, ...]:
    """All orders of a book, always the same ones. No order id and no item is in both books."""
    if book not in BOOKS:
        raise ValueError(f"no order book {book!r}; there are {', '.join(BOOKS)}")
    rng = random.Random(f"orders:{book}")
    ids = [
        f"{series}-{n}" for series in SERIES for n in range(100, 200) if heldout_id(series, n) == (book == "heldout")
    ]
    items = [
        f"{word} #{n}"
        for k, word in enumerate(ITEMS)
        for n in range(10, 100)
        if heldout_item(k, n) == (book == "heldout")
    ]
    count = BOOKS[book]
    chosen = zip(rng.sample(ids, count), rng.sample(items, count), strict=True)
    # Half of the orders can still be cancelled, so that always doing it is right as often as never doing it.
    return tuple(
        Order(
            id=order_id,
            item=item,
            status="open" if number % 2 == 0 else rng.choice(STATUSES[1:]),
            day=rng.randint(10, 99),
            price=rng.randint(10, 99),
        )
        for number, (order_id, item) in enumerate(chosen)
    )


def heldout_id(series: str, number: int) -> bool:
    """Whether the order id made of these two is held out for evaluation: one in five."""
    return (SERIES.index(series) + 2 * number) % 5 == 0


def heldout_item(word: int, number: int) -> bool:
    """Whether the item `ITEMS[word] #number` is held out for evaluation: one in five."""
    return (word + number) % 5 == 0
