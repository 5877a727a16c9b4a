"""A model that is sharded between processes by torch's FSDP2, where `accelerate launch` was told to.

CM2 shards it itself, layer by layer, and accelerate sees processes of data alone: so it is the same code on GPUs and on
the CPUs that tests run on, where accelerate shards nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from cm2_agent.errors import TrainError
from cm2_agent.models.adapters import is_peft, plain_model
from cm2_agent.models.weights import fingerprint, with_adapter

from .launch import USE_FSDP, number, rank, sharded
from .policy import Policy
from .trained_logits import METHOD, logprob_pass


def require_known(config: Any) -> None:
    """Raises TrainError where a launch with FSDP, or a TRL config, asks for what is not done here."""
    if not sharded():
        return
    from accelerate.utils import FullyShardedDataParallelPlugin  # type: ignore[import-untyped]

    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise TrainError(f"FSDP of version {version} was asked for; set fsdp_version: 2, as cookbook/fsdp2.yaml does")
    found = FullyShardedDataParallelPlugin()
    strategy = getattr(config.save_strategy, "value", config.save_strategy)
    refused = {
        "fsdp_reshard_after_forward: true (a layer's weights are let go after it)": not found.reshard_after_forward,
        "fsdp_offload_params: false": isinstance(found.cpu_offload, CPUOffloadPolicy),
        "fsdp_cpu_ram_efficient_loading: false (each process compares the weights that it read)": bool(
            found.cpu_ram_efficient_loading
        ),
        "fsdp_activation_checkpointing: false, and args={'activation_checkpointing': True}": bool(
            found.activation_checkpointing
        ),
        "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP (layer by layer)": bool(found.min_num_params),
        "no fsdp_ignored_modules": found.ignored_modules is not None,
        "mixed_precision: 'no', and no bf16 or fp16 in args (a checkpoint in bfloat16 is computed in bfloat16)": (
            config.bf16 or config.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
        ),
        "no sync_ref_model: the reference would be a second model in memory": bool(config.sync_ref_model),
        "no save_steps or save_strategy: a sharded run writes no checkpoints, and `out` at its end": strategy != "no",
    }
    wanted = [words for words, wrong in refused.items() if wrong]
    if wanted:
        raise TrainError(
            f"GRPO under FSDP takes other settings than were given; set {'; '.join(wanted)}. cookbook/fsdp2.yaml is a"
            " configuration that it takes"
        )


@contextmanager
def by_ourselves() -> Iterator[None]:
    """Accelerate, meanwhile, hears of no FSDP."""
    before = os.environ.pop(USE_FSDP, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[USE_FSDP] = before


def shard(policy: Policy, device: torch.device, *, in_memory: bool) -> None:
    """Shards the model, on `device`, in place.

    Weights that are trained become float32, their own masters, a part in each process; they are gathered in the dtype
    in which they were found, so that what is computed stays the same. A base below an adapter stays as it is, sharded;
    the adapter is whole in each process. Raises TrainError for a model that cannot be.
    """
    plain = plain_model(policy.model)
    adapter = {one for one in policy.model.parameters() if one.requires_grad} if is_peft(policy.model) else set()
    dtypes = {one.dtype for one in plain.parameters()}
    if in_memory:
        raise TrainError("a model in memory cannot be sharded in place; give its folder or hub name")
    if getattr(plain, "hf_quantizer", None) is not None:
        raise TrainError("a quantised model cannot be sharded; train it in processes that hold it whole, without FSDP")
    if not adapter and dtypes not in ({torch.float32}, {torch.bfloat16}):
        names = ", ".join(sorted(str(one).removeprefix("torch.") for one in dtypes))
        raise TrainError(f"the model's weights are in {names}; under FSDP expected all in bfloat16, or all in float32")
    wrapped = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
    kinds = set(wrapped.split(",")) if wrapped else set(getattr(plain, "_no_split_modules", None) or ())
    layers = [module for module in plain.modules() if type(module).__name__ in kinds]
    if not layers:
        raise TrainError(
            f"{type(plain).__name__} has no layers of {', '.join(sorted(kinds)) or 'its _no_split_modules'}; name their"
            " class in fsdp_transformer_layer_cls_to_wrap"
        )
    half = not adapter and dtypes == {torch.bfloat16}
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (number(),)),
        "reshard_after_forward": True,  # of the root too: parameters are the shards whenever nothing is computed
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        if half
        else MixedPrecisionPolicy(cast_forward_inputs=False),
        "ignored_params": adapter,
    }
    for one in adapter:
        one.data = one.data.to(device)
    for module in (*layers, plain):
        if half:
            for one in module.parameters():
                if not isinstance(one, DTensor):
                    one.data = one.data.to(torch.float32)
        fully_shard(module, **settings)
    setattr(plain, METHOD, MethodType(logprob_pass, plain))
    register_fsdp_forward_method(plain, METHOD)
    # The Trainer then neither moves nor wraps it: placement and gradients are the model's own.
    plain._is_distributed_loading_by_transformers = True


def is_sharded(model: Any) -> bool:
    return any(isinstance(one, DTensor) for one in model.parameters())


def gathered(policy: Policy) -> Policy | None:
    """The policy whole, in the dtype in which it was found, in process 0; None in the others. All must call it.

    An adapter is whole already, and its base was not trained.
    """
    plain = plain_model(policy.model)
    if is_peft(policy.model) or not is_sharded(plain):
        return policy if rank() == 0 else None
    dtype = torch.float32 if policy.full_precision else torch.bfloat16
    state = {}
    for name, tensor in plain.state_dict().items():
        whole = tensor.full_tensor().to(dtype) if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            state[name] = whole.cpu()
    if rank() > 0:
        return None
    kind = type(plain).__mro__[2]  # below FSDP's own class and its mixin
    with torch.device("meta"):
        model = kind(plain.config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = plain.generation_config
    return replace(policy, model=model)


def trained_version(policy: Policy) -> str:
    """The version of a policy as `gathered` gave it."""
    if is_sharded(policy.model):  # below an adapter, where it is as it was
        return with_adapter(policy.version.split("+")[0], policy.model)
    return fingerprint(policy.model)
