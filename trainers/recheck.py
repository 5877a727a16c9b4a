"""Whether the model at hand gives the logprobs of the stored calls again: asked before anything is learnt from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cm2_agent.errors import TrainError

from .grpo_run import Prepared
from .prompt_text import leave_out_lost
from .rows import Floats, Row

FRESH = 1e-4
"""Mean |log π − log μ| of the recomputed calls up to which, in float32, the stored logprobs stand for π_prox itself."""
TOLERANCE = 1e-3
"""Mean |log π − log μ|, in nats, that float32 never reaches with the same weights."""
CALL_TOKENS = 64
"""In lower precision so many tokens of each call are recomputed, twice."""
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
    most = None if policy.full_precision else CALL_TOKENS
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
    elif policy.full_precision:
        check["tolerance"] = TOLERANCE
    else:
        check |= _spread(prepared, chosen, now)
    if not check["mean_abs"] <= check["tolerance"]:
        raise _mismatch(check, policy.version)
    exact = policy.full_precision and check["mean_abs"] <= FRESH
    return Rechecked(prepared=prepared, check=check, fresh=exact or not policy.full_precision, exact=exact)


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


def _spread(prepared: Prepared, chosen: Sequence[tuple[Row, int]], now: Sequence[Floats]) -> dict[str, float]:
    """What two runs of these weights differ by on the same tokens, and what the stored logprobs may differ by: in lower
    precision rounding depends on the batch and on the cache, so that it is measured and not assumed.
    """
    calls = []
    for row, number in chosen:
        span = row.spans[number]
        calls.append((row.ids[: span.start], row.ids[span.start : min(span.stop, span.start + CALL_TOKENS)]))
    again = prepared.trainer.sampled_logprobs(calls)
    apart = [np.abs(one - other) for one, other in zip(now, again, strict=True)]
    every = np.concatenate(apart)
    spread = float(every.mean())
    # Tokens of one call share their rounding: where calls differ more than tokens do, theirs is the error.
    by_call = np.sqrt(sum((one.sum() - spread * len(one)) ** 2 for one in apart)) / len(every)
    error = max(float(by_call), float(every.std()) / float(np.sqrt(len(every))))
    return {"spread": spread, "tolerance": max(TOLERANCE, spread + max(MARGIN * spread, ERRORS * error))}


def _mismatch(check: Mapping[str, float], version: str) -> TrainError:
    """The refusal of stored logprobs that their recorded policy does not give again."""
    return TrainError(
        f"stored logprobs are not this policy's: {check['calls']:g} calls of policy {version} recomputed, mean"
        f" |difference| {check['mean_abs']:.3g} (at most {check['max_abs']:.3g}), expected up to"
        f" {check['tolerance']:.3g}. Either the ids or logprobs were recorded wrongly, or another temperature, template"
        " or precision was used than stored, or other weights sampled; training on them would go astray. If the sampler"
        " computed in another precision on purpose, raise tolerance."
    )
