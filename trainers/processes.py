"""What the processes of a run that a launcher started tell each other.

Each reads the same rollouts and makes the same batches; the micro-batches of an optimizer step are shared out, and
the gradients added up. A run of one process never gets here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from cm2_agent.errors import TrainError

from .launch import number, rank
from .output_folder import whole_folder
from .run_identity import RunIdentity

T = TypeVar("T")
_RUNS = itertools.count()
BUCKET = 2**22
"""Gradients that are added up at a time, in values."""


def from_first(value: T) -> T:
    """What process 0 has, in all of them."""
    if number() == 1:
        return value
    box: list[Any] = [value if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found


def from_all(value: T) -> list[T]:
    """What each process has, by its rank, in all of them."""
    if number() == 1:
        return [value]
    boxes: list[Any] = [None] * number()
    dist.all_gather_object(boxes, value)
    return boxes


def share(values: Sequence[T]) -> list[T]:
    """This process's share of values that all of them have: each gets as many, so that all go through the model as
    often; where they do not come out even, the last value is there more than once.
    """
    processes = number()
    if processes == 1 or not values:
        return list(values)
    missing = -len(values) % processes
    return [*values, *[values[-1]] * missing][rank() :: processes]


def mean_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes; one that is None somewhere counts as 0 there, and one that
    is None in all of them stays so: an optimizer passes over it. FSDP has averaged those of sharded parameters already.
    """
    if number() == 1:
        return
    chunk: list[torch.Tensor] = []
    trained = [one for one in parameters if one.requires_grad and not isinstance(one, DTensor)]
    for parameter, found in zip(trained, _anywhere([one.grad is not None for one in trained]), strict=True):
        if not found:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        chunk.append(parameter.grad)
        if sum(one.numel() for one in chunk) >= BUCKET:
            _add_up(chunk)
            chunk = []
    if chunk:
        _add_up(chunk)


def _anywhere(found: list[bool]) -> list[bool]:
    """Of each place, whether any process has it."""
    return [any(here) for here in zip(*from_all(found), strict=True)]


def _add_up(gradients: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([one.flatten() for one in gradients])
    dist.all_reduce(flat)
    flat /= number()
    parts = torch.split(flat, [one.numel() for one in gradients])
    for one, part in zip(gradients, parts, strict=True):
        one.copy_(part.view_as(one))


def require_data_parallel(accelerator: Any) -> None:
    """Raises TrainError where accelerate itself would cut the model up between processes."""
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise TrainError(
            f"the run was launched with {kind}, which cuts the model up between processes in a way of its own; expected"
            " each process to hold all of it (accelerate launch --multi_gpu, or torchrun), or FSDP2 (accelerate launch"
            " --config_file cookbook/fsdp2.yaml)"
        )


def require_same(run: RunIdentity) -> None:
    """Raises TrainError, in every process, where one began with other weights or rollouts than the first: their
    gradients would be those of two runs.
    """
    first, *others = from_all((run.model, run.rows))
    for place, other in enumerate(others, start=1):
        if other != first:
            what = "rollouts" if other[0] == first[0] else "weights"
            raise TrainError(
                f"process {place} has other {what} than process 0; expected the same in all {number()}. Give each the"
                " same model, and groups that are read from a store which nobody writes to meanwhile"
            )


def require_one(trainer: str) -> None:
    """Raises TrainError where several processes were launched for a trainer that shares nothing out."""
    if number() > 1:
        raise TrainError(
            f"{trainer} was launched in {number()} processes, and runs in one; start it without accelerate launch, or"
            " with --num_processes 1. GRPO runs in several."
        )


def wait_for_all() -> None:
    """Goes on when all processes have come here."""
    if number() > 1:
        dist.barrier()


@contextmanager
def ending_together() -> Iterator[None]:
    """Where one process fails, the others end too, with its words, instead of waiting for it until a timeout.

    Over gloo the failing one takes down what connects them; over NCCL the launcher ends the others.
    """
    run = next(_RUNS)
    try:
        yield
    except BaseException as error:
        if number() == 1 or not dist.is_initialized():
            raise
        first = _first_failure(f"cm2/failure/{run}", f"{rank()} {' '.join(str(error).split()) or type(error).__name__}")
        place, _, words = first.partition(" ")
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()
        if place == str(rank()):
            raise
        raise TrainError(f"process {place} stopped the run: {words}") from error


def _first_failure(key: str, words: str) -> str:
    """What the first process that failed said; this one's words, where no other failed before."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return bytes(store.compare_set(key, "", words)).decode()
    except RuntimeError:  # process 0 kept the store, and is gone
        return words


@contextmanager
def folder_of_first(out: Path) -> Iterator[Path]:
    """`whole_folder(out)` in process 0, which alone writes; the others get the path, and wait until `out` is there."""
    if rank() == 0:
        with whole_folder(out) as folder:
            yield folder
    else:
        yield out.parent / f".{out.name}.writing" / "new"
    wait_for_all()
