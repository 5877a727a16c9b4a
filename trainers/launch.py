"""What a launcher says in the environment of the processes that it starts: how many, which one this is, and whether
they share a model.
"""

from __future__ import annotations

import os

from cm2_agent.types.json_values import JSON

USE_FSDP = "ACCELERATE_USE_FSDP"
"""Where accelerate's launcher leaves that FSDP was asked for; its settings stand in FSDP_* beside it."""


def number() -> int:
    """How many processes the run has; 1 where nobody launched several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0. Process 0 writes the folders and shows the progress."""
    return int(os.environ.get("RANK", "0")) if number() > 1 else 0


def sharded() -> bool:
    """Whether accelerate's launcher asked for FSDP, and started several processes."""
    return number() > 1 and os.environ.get(USE_FSDP, "false").lower() == "true"


def launched() -> dict[str, JSON]:
    """How the run was launched, in words of its identity; nothing for one process."""
    return {} if number() == 1 else {"processes": number(), "sharded": sharded()}
