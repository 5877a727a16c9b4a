"""A training script as a launcher starts it in every process: GRPO on stores, one run after the other.

python -m tests.trainers.train_by_process '[{"store": …, "model": …, "out": …, "settings": {…}, "env": {…}}, …]'

`env` is what a launcher leaves in the environment for a run.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from cm2_agent import GRPO, SQLStore


def main(runs: str) -> None:
    torch.set_num_threads(1)
    for one in json.loads(runs):
        os.environ.update(one.get("env", {}))
        GRPO(one["model"], one["out"], **one["settings"]).train(SQLStore(one["store"]).groups())
        for name in one.get("env", {}):
            del os.environ[name]
    print(f"{torch.distributed.get_rank()}/{torch.distributed.get_world_size()}\n", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
