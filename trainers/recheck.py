"""Whether the model at hand gives the logprobs of the stored calls again: asked before anything is learnt from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cm2_agent.errors import TrainError

from .grpo_run import Prepared
from .prompt_text import leave_out_lost

FRESH = 1e-4
"""Mean |log π − log μ| of the recomputed calls up to which the stored logprobs stand for π_prox itself."""


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """A prepared run whose stored calls were recomputed: `check` is None where none could be compared.

    `fresh`: the stored logprobs stand for those of the policy.
    """

    prepared: Prepared
    check: Mapping[str, float] | None
    fresh: bool


def recheck(prepared: Prepared) -> Rechecked:
    """Recomputes stored calls where this model is the policy that wrote them. Raises TrainError where it does not give
    their logprobs again (docs/method.md §6). Rollouts whose prompts do not hold the dialogue's words are left out.
    """
    prepared = replace(prepared, dataset=leave_out_lost(prepared.dataset, prepared.policy.tokenizer))
    grpo, policy = prepared.grpo, prepared.policy
    rows = [row for group in prepared.trained(prepared.dataset) for row in group.rows]
    own = {policy.version} if grpo.policy_version is None else {policy.version, grpo.policy_version}
    calls = [(row, number) for row in rows if row.exact for number in range(len(row.spans))]
    if not {row.policy for row in rows} <= own or not calls or grpo.checks < 1:
        return Rechecked(prepared=prepared, check=None, fresh=False)
    count = min(grpo.checks, len(calls))
    chosen = [calls[index * len(calls) // count] for index in range(count)]
    distinct = list({id(row): row for row, _ in chosen}.values())
    now = dict(zip(map(id, distinct), prepared.trainer.logprobs(distinct), strict=True))
    differences = []
    for row, number in chosen:
        start = sum(len(span) for span in row.spans[:number])
        part = slice(start, start + len(row.spans[number]))
        differences.append(np.abs(now[id(row)][part] - row.mu[part]))
    found = np.concatenate(differences)
    check = {
        "calls": len(chosen),
        "tokens": len(found),
        "mean_abs": float(found.mean()),
        "max_abs": float(found.max()),
    }
    if not check["mean_abs"] <= grpo.tolerance:
        raise _mismatch(check, policy.version, grpo.tolerance)
    return Rechecked(prepared=prepared, check=check, fresh=check["mean_abs"] <= FRESH and policy.full_precision)


def _mismatch(check: Mapping[str, float], version: str, tolerance: float) -> TrainError:
    """The refusal of stored logprobs that their recorded policy does not give again."""
    return TrainError(
        f"stored logprobs are not this policy's: {check['calls']:g} calls of policy {version} recomputed, mean"
        f" |difference| {check['mean_abs']:.3g} (at most {check['max_abs']:.3g}), expected up to {tolerance:g}. Either"
        " the ids or logprobs were recorded wrongly, or another temperature, template or precision was used than"
        " stored; training on them would go astray. If the sampler computed in lower precision on purpose, raise"
        " tolerance."
    )
