"""Whether the model at hand gives the logprobs of the stored calls again: asked before anything is learnt from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cm2_agent.errors import TrainError

from .cached_logprobs import Call
from .grpo_run import Prepared
from .rows import Floats, Row

FRESH = 1e-4
"""Mean |log π − log μ| of the recomputed calls up to which, in float32, the stored logprobs stand for π_prox itself."""
TOLERANCE = 1e-3
"""Mean |log π − log μ|, in nats, that float32 never reaches with the same weights."""
CALL_TOKENS = 64
"""In lower precision so many tokens of each call are recomputed, twice."""
FINGERPRINT = re.compile(r"[0-9a-f]{16}(\+[0-9a-f]{16})?")
REPRODUCED = 0.02
"""The least share of logprobs that come out the same to the last digit, where another model's fingerprint is said to
mean this one: a LocalChatModel with the same weights gives every tenth or more, other weights none.
"""
ALONE = 8
MARGIN, ERRORS = 0.25, 4.0
"""The stored logprobs of the same weights may lie so much further off than a second run does: a share of what that
differs by, or so many standard errors of it.
"""


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """A prepared run whose stored calls were recomputed: `check` is None where none could be compared.

    `fresh`: these very weights sampled. `exact`: and the stored logprobs are log π to the digit, so that they stand
    for π_prox.
    """

    prepared: Prepared
    check: Mapping[str, float] | None
    fresh: bool
    exact: bool = False


def recheck(prepared: Prepared) -> Rechecked:
    """Recomputes stored calls where this model is the policy that wrote them. Raises TrainError where it does not give
    their logprobs again (docs/method.md §6).
    """
    grpo, policy = prepared.grpo, prepared.policy
    rows = [row for group in prepared.dataset.groups if group.trained_on(prepared.beta) for row in group.rows]
    own = {policy.version} if grpo.policy_version is None else {policy.version, grpo.policy_version}
    calls = [(row, number) for row in rows if row.exact for number in range(len(row.spans))]
    if not {row.policy for row in rows} <= own or not calls or grpo.checks < 1:
        return Rechecked(prepared=prepared, check=None, fresh=False)
    count = min(grpo.checks, len(calls))
    chosen = [calls[index * len(calls) // count] for index in range(count)]
    settings = prepared.trainer.settings
    full = policy.full_precision and not (settings.bf16 or settings.fp16)  # those run in half precision anyway
    most = None if full else CALL_TOKENS
    now, stored = _recomputed(prepared, chosen, most), [row.mu[_part(row, number, most)] for row, number in chosen]
    found = np.abs(np.concatenate(now) - np.concatenate(stored))
    check = {
        "calls": len(chosen),
        "tokens": len(found),
        "mean_abs": float(found.mean()),
        "max_abs": float(found.max()),
    }
    if grpo.tolerance is not None:
        check["tolerance"] = grpo.tolerance
    elif full:
        check["tolerance"] = TOLERANCE
    else:
        again = prepared.trainer.sampled_logprobs(_calls(chosen))
        check |= _spread(now, again, _rounding(policy.model, settings))
        if grpo.policy_version != policy.version and FINGERPRINT.fullmatch(grpo.policy_version or ""):
            check["reproduced"] = max(_equal(again, stored), _alone(prepared, chosen, stored))
    if not check["mean_abs"] <= check["tolerance"] or check.get("reproduced", 1.0) < REPRODUCED:
        raise _mismatch(check, policy.version)
    exact = full and check["mean_abs"] <= FRESH
    return Rechecked(prepared=prepared, check=check, fresh=exact or not full, exact=exact)


def _part(row: Row, number: int, most: int | None) -> slice:
    """Where the tokens of a row's call stand among its model tokens, at most so many."""
    start = sum(len(span) for span in row.spans[:number])
    length = len(row.spans[number])
    return slice(start, start + (length if most is None else min(length, most)))


def _recomputed(prepared: Prepared, chosen: Sequence[tuple[Row, int]], most: int | None) -> list[Floats]:
    """log π of the calls' tokens by the forward pass that training takes."""
    distinct = list({id(row): row for row, _ in chosen}.values())
    logprobs = dict(zip(map(id, distinct), prepared.trainer.logprobs(distinct), strict=True))
    return [logprobs[id(row)][_part(row, number, most)] for row, number in chosen]


def _calls(chosen: Sequence[tuple[Row, int]], most: int = CALL_TOKENS) -> list[Call]:
    spans = [(row.ids, row.spans[number]) for row, number in chosen]
    return [(ids[: span.start], ids[span.start : min(span.stop, span.start + most)]) for ids, span in spans]


def _equal(again: Sequence[Floats], stored: Sequence[Floats]) -> float:
    """The share of the tokens whose stored logprob is given again to the last digit."""
    pairs = [one.astype(np.float32) == other.astype(np.float32) for one, other in zip(again, stored, strict=True)]
    return float(np.concatenate(pairs).mean())


def _alone(prepared: Prepared, chosen: Sequence[tuple[Row, int]], stored: Sequence[Floats]) -> float:
    """The same of a few calls, one at a time: so samples whoever asks for one answer after another."""
    calls = _calls(chosen, ALONE)[:ALONE]
    again = [values for call in calls for values in prepared.trainer.sampled_logprobs([call])]
    return _equal(again, [values[:ALONE] for values in stored[:ALONE]])


def _rounding(model: Any, settings: Any) -> float:
    """The largest relative error of one rounding in what the model computes in: 2⁻⁸ in bfloat16, 2⁻¹¹ in float16."""
    import torch

    used = {one.dtype for one in model.parameters() if one.is_floating_point()}
    used |= {torch.bfloat16} if settings.bf16 else set()
    used |= {torch.float16} if settings.fp16 else set()
    return max((torch.finfo(dtype).eps / 2 for dtype in used), default=0.0)


def _spread(now: Sequence[Floats], again: Sequence[Floats], rounding: float) -> dict[str, float]:
    """What two runs of these weights differ by on the same tokens, and what the stored logprobs may differ by: in lower
    precision rounding depends on the batch and on the cache, so that it is measured and not assumed. A sure policy's
    differences stand in a few tokens, which few calls may lack: what one rounding may change is always allowed.
    """
    apart = [np.abs(one - other) for one, other in zip(now, again, strict=True)]
    every = np.concatenate(apart)
    spread = float(every.mean())
    # Tokens of one call share their rounding: where calls differ more than tokens do, theirs is the error.
    by_call = np.sqrt(sum((one.sum() - spread * len(one)) ** 2 for one in apart)) / len(every)
    error = max(float(by_call), float(every.std()) / float(np.sqrt(len(every))))
    measured = spread + max(MARGIN * spread, ERRORS * error)
    return {"spread": spread, "tolerance": max(TOLERANCE, rounding, measured)}


def _mismatch(check: Mapping[str, float], version: str) -> TrainError:
    """The refusal of stored logprobs that their recorded policy does not give again."""
    if check["mean_abs"] <= check["tolerance"]:
        return TrainError(
            f"stored logprobs are not this policy's: {check['calls']:g} calls recomputed, and"
            f" {check['reproduced']:.1%} of the logprobs come out the same to the last digit, expected {REPRODUCED:.0%}"
            f" or more. policy_version is the fingerprint of other weights than these ({version}). Leave it out, so"
            " that the rollouts are taken as another policy's; or give tolerance, if another kind of machine sampled."
        )
    return TrainError(
        f"stored logprobs are not this policy's: {check['calls']:g} calls of policy {version} recomputed, mean"
        f" |difference| {check['mean_abs']:.3g} (at most {check['max_abs']:.3g}), expected up to"
        f" {check['tolerance']:.3g}. Either the ids or logprobs were recorded wrongly, or another temperature, template"
        " or precision was used than stored, or other weights sampled; training on them would go astray. If the sampler"
        " computed in another precision on purpose, raise tolerance."
    )
