"""What readers ask for at the lending desk: tasks of any number of turns for training, for tuning and for the end.

Tuning tasks are of the training branch, held-out ones of a branch of their own, which nothing but these tasks reads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cm2_agent.benchmarks.lending_desk.app import SYSTEM
from cm2_agent.benchmarks.lending_desk.catalog import Copy, copies
from cm2_agent.types.task import Task

# How readers put it: {} is the barcode. The second form is for a later message, about the copy already spoken of.
WORDINGS = {
    "place": (
        ["On which shelf does {} belong and until which day is it out?", "Shelf and due day of {}?"],
        ["On which shelf does that one belong and until which day is it out?", "Its shelf and due day?"],
    ),
    "queue": (
        ["How many readers want {} and where does it belong?", "Are readers after {} and on which shelf?"],
        ["How many readers want that one and where does it belong?", "Are readers after it and on which shelf?"],
    ),
    "keep": (
        ["May I keep {} longer?", "I would like to keep {} a little more."],
        ["May I keep that one longer?", "I would like to keep it a little more."],
    ),
}
ASKS = tuple(WORDINGS)
SAME_COPY = 0.3
"""How often a message goes on about the copy of the one before."""

Request = tuple[str, str]
"""What is asked (one of ASKS) and of which copy."""


def training_tasks(seed: int, turns: int, count: int) -> list[Task]:
    """`count` tasks over the training branch; another seed draws other requests."""
    return _tasks("training", f"training:{seed}", turns, count)


def heldout_tasks(seed: int, turns: int, count: int) -> list[Task]:
    """`count` tasks over barcodes and titles that no training task, demonstration or checklist ever reads."""
    return _tasks("heldout", f"heldout:{seed}", turns, count)


def draw_requests(rows: Sequence[Copy], turns: int, rng: random.Random) -> tuple[list[Request], list[str]]:
    """The requests of one dialogue, and the messages that put them. No copy is asked the same thing twice in a row."""
    requests: list[Request] = []
    messages: list[str] = []
    for turn in range(turns):
        same = turn > 0 and rng.random() < SAME_COPY
        if same:
            barcode = requests[-1][1]
            ask = rng.choice([ask for ask in ASKS if ask != requests[-1][0]])
        else:
            fresh = [row.barcode for row in rng.sample(rows, 2) if not requests or row.barcode != requests[-1][1]]
            barcode, ask = fresh[0], rng.choice(ASKS)
        requests.append((ask, barcode))
        messages.append(rng.choice(WORDINGS[ask][int(same)]).format(barcode))
    return requests, messages


def _tasks(branch: str, name: str, turns: int, count: int) -> list[Task]:
    if turns < 1 or count < 1:
        raise ValueError(f"turns {turns}, count {count}; expected 1 or more of each")
    rng = random.Random(f"lending:{name}:{turns}")
    rows = copies(branch)
    tasks = []
    for number in range(count):
        requests, messages = draw_requests(rows, turns, rng)
        titles = {row.barcode: row.title for row in rows}
        tasks.append(
            Task(
                id=f"lending-{name.replace(':', '-')}-{turns}-{number:03d}",
                system=SYSTEM,
                turns=tuple(messages),
                entities=tuple(
                    dict.fromkeys(
                        entity for _, barcode in requests for entity in (f"copy:{barcode}", f"title:{titles[barcode]}")
                    )
                ),
                metadata={"branch": branch, "requests": [list(request) for request in requests]},
            )
        )
    return tasks
