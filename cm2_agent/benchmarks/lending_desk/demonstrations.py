"""Demonstrations for the cold start: scripted clerks, most of them sloppy, working on the desk's real database.

How sloppy decides where training begins (`STARTS`). A sloppy clerk skips each habit of a good one (to look first, to
go on as asked, to say the first fact as it is, and the second) by chance, one by one, in all turns of the dialogue. Who
skips to say a fact says another figure that was read: to copy is never unlearned, only what to copy.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm2_agent.benchmarks.lending_desk.app import SYSTEM
from cm2_agent.benchmarks.lending_desk.catalog import Catalog, copies, open_catalog
from cm2_agent.benchmarks.lending_desk.tasks import draw_requests
from cm2_agent.trainers.demonstration import Demonstration

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the demonstrations are like that a policy begins with: the share of them that is sloppy, and how often a
    sloppy clerk skips a habit."""

    sloppy: float
    skips: float

    def __post_init__(self) -> None:
        if not 0 <= self.sloppy <= 1 or not 0 <= self.skips <= 1:
            raise ValueError(f"sloppy {self.sloppy}, skips {self.skips}; expected shares in [0, 1]")


CAREFUL = Start(sloppy=0.0, skips=0.0)
STARTS: Mapping[str, Start] = {
    "full": Start(sloppy=0.5, skips=0.6),  # some rollouts are right from end to end
    "none": Start(sloppy=1.0, skips=0.3),  # none is, but of many groups the best turn is
    "partial": Start(sloppy=1.0, skips=0.5),  # of most groups not even the best turn is right
}


def demonstrations(count: int, turns: int, start: Start, seed: int) -> list[list[Message]]:
    """`count` dialogues of `turns` turns over the training branch, as messages for a chat template.

    Arguments of tool calls are JSON strings (datasets would merge the objects of different tools into one).
    """
    rng = random.Random(f"lending demonstrations:{seed}")
    rows = copies("training")
    dialogues = []
    for _ in range(count):
        catalog = open_catalog("training")
        clerk = Clerk(catalog, rng, skips=start.skips if rng.random() < start.sloppy else 0.0)
        for (ask, barcode), message in zip(*draw_requests(rows, turns, rng), strict=True):
            clerk.hear(message)
            clerk.serve(ask, barcode)
        dialogues.append(clerk.messages)
        catalog.close()
    return dialogues


class Clerk(Demonstration):
    """Works through a dialogue with the catalog's real functions, and skips each habit with the chance `skips`."""

    def __init__(self, catalog: Catalog, rng: random.Random, *, skips: float) -> None:
        super().__init__(SYSTEM)
        self.catalog, self.rng, self.skips = catalog, rng, skips

    def serve(self, ask: str, barcode: str) -> None:
        self._read: list[str] = []
        title, shelf, due = self._find(barcode)
        if ask == "place":
            if title is not None and self._skipped():
                self._answer(self.catalog.count_waiting, title=title)  # nobody asked
            self.say(f"There it is, shelf {self._figure(shelf)}, due {self._figure(due)}.")
            return
        waiting = None if title is None or self._skipped() else self._answer(self.catalog.count_waiting, title=title)
        if ask == "queue":
            self.say(f"So many, waiting {self._figure(waiting)}, shelf {self._figure(shelf)}.")
            return
        if waiting is None:
            extends = self.rng.random() < 0.5  # unchecked
        else:
            extends = (waiting == "0") != self._skipped()
        if extends:
            until = self._answer(self.catalog.extend_loan, barcode=barcode)
            self.say(f"Yes, until {self._figure(until)}, shelf {self._figure(shelf)}.")
        else:
            self.say(f"No, waiting {self._figure(waiting)}, due {self._figure(due)}.")

    def _find(self, barcode: str) -> tuple[str | None, str | None, str | None]:
        """Title, shelf and due day as the catalog has them; None each where the clerk does not look."""
        if self._skipped():
            return None, None, None
        title, shelf, due = self.call(self.catalog.find_copy, barcode=barcode).split(", ")
        figures = [shelf.split()[-1], due.split()[-1]]
        self._read += figures
        return title, figures[0], figures[1]

    def _answer(self, tool: Any, **arguments: str) -> str:
        figure: str = self.call(tool, **arguments).split()[-1]
        self._read.append(figure)
        return figure

    def _figure(self, fact: str | None) -> str:
        """The fact as it is, or another figure that was read in this turn; "unknown" where there is none."""
        if fact is None:
            return "unknown"
        others = [figure for figure in self._read if figure != fact]
        return self.rng.choice(others or ["unknown"]) if self._skipped() else fact

    def _skipped(self) -> bool:
        return self.rng.random() < self.skips
