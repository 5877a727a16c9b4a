"""One of several processes that meet over gloo: what it has after they shared gradients, and how it ends
when another fails, as a line of JSON.

RANK=0 WORLD_SIZE=2 python -m tests.trainers.one_of_processes FILE
"""

from __future__ import annotations

import json
import sys

import torch

from cm2_agent.errors import TrainError
from cm2_agent.trainers.launch import number, rank
from cm2_agent.trainers.processes import ending_together, from_all, mean_gradients, require_same
from cm2_agent.trainers.run_identity import RunIdentity


def main(meeting: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank(), world_size=number())
    everywhere, first, nowhere = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    everywhere.grad = torch.full((2,), float(rank() + 1))
    first.grad = torch.ones(2) if rank() == 0 else None
    mean_gradients([everywhere, first, nowhere])
    said = []
    for model, rows in (("a", "b"), ("a", f"rows {rank()}"), (f"model {rank()}", "b")):
        try:
            require_same(RunIdentity(algorithm="grpo", model=model, rows=rows))
            said.append("same")
        except TrainError as error:
            said.append(str(error))
    gradients = [None if one.grad is None else one.grad.tolist() for one in (everywhere, first, nowhere)]
    try:
        with ending_together():
            if rank() == 1:
                raise TrainError("its disk is full")
            from_all("the figures of a step")
        ended = "well"
    except TrainError as error:
        ended = str(error)
    print(json.dumps({"gradients": gradients, "said": said, "ended": ended}))


if __name__ == "__main__":
    main(sys.argv[1])
