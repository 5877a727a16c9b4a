"""What a launcher says in the environment of the processes that it starts: how many, which one this is, and whether
they share a model.
"""

from __future__ import annotations

import logging
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


def _asks_for_fsdp() -> bool:
    """Whether accelerate's launcher asked for FSDP."""
    return os.environ.get(USE_FSDP, "false").lower() == "true"


def sharded() -> bool:
    """Whether it did, and started several processes."""
    return number() > 1 and _asks_for_fsdp()


def warn_unsharded() -> None:
    """Logs where FSDP was asked for and one process was started, in which nothing is sharded."""
    if number() == 1 and _asks_for_fsdp():
        logging.getLogger("cm2_agent").warning(
            "%s=true asks for FSDP, and there is one process: nothing is sharded, it holds the whole model. Start"
            " several: accelerate launch --num_processes N train.py (on CPUs torchrun --nproc_per_node N train.py)",
            USE_FSDP,
        )


def launched() -> dict[str, JSON]:
    """How the run was launched, in words of its identity; nothing for one process."""
    return {} if number() == 1 else {"processes": number(), "sharded": sharded()}
