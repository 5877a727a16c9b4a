"""Logs of Inspect (`inspect_ai`): an evaluation with its samples, as JSON or as the `.eval` archive.

Source: inspect.aisi.org.uk, "Log Files"; a sample has messages, a target and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, mapping_of, number_of, text_of, texts_of
from cm2_agent.importers.openai_messages import read_messages
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import RunFailure
from cm2_agent.types.run_attributes import CUT

_LETTERS: Final[Mapping[str, float]] = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Correct, incorrect, partly correct, no answer, as Inspect's own metrics count them."""


def is_inspect(record: JSON) -> bool:
    """Whether it is a log, or one sample of an archive with its log's header."""
    if not isinstance(record, Mapping):
        return False
    header = record.get("eval")
    return isinstance(header, Mapping) and "task" in header and ("samples" in record or "sample" in record)


def samples(record: JSON) -> Iterator[tuple[str, JSON]]:
    """Each sample of a log by its id and epoch, with the log's header. Raises TraceError."""
    known = mapping_of(record)
    if "sample" in known:
        yield _label(known["sample"]), known
        return
    if not isinstance(known.get("samples"), list) or not known["samples"]:
        raise TraceError("the log holds no samples (a header, or an evaluation that failed before its first)")
    for sample in known["samples"]:
        yield _label(sample), {"eval": known.get("eval"), "sample": sample}


def _label(sample: JSON) -> str:
    known = mapping_of(sample)
    return f"sample {known.get('id')} (epoch {known.get('epoch', 1)})"


def read_inspect(record: JSON) -> Chat:
    """One sample → its dialogue. Raises TraceError."""
    header, sample = mapping_of(mapping_of(record).get("eval")), mapping_of(mapping_of(record).get("sample"))
    if not isinstance(sample.get("messages"), list) or not sample["messages"]:
        raise TraceError("has no messages; expected a sample of an Inspect log")
    messages = read_messages([_message(one) for one in sample["messages"]])
    task = text_of(header.get("task")) or "inspect"
    epoch = sample.get("epoch")
    error, limit = sample.get("error"), mapping_of(sample.get("limit"))
    return Chat(
        messages=messages,
        key=["inspect", header.get("run_id"), header.get("eval_id"), task, sample.get("id"), epoch, sample["messages"]],
        prefix="inspect",
        name=task,
        model=text_of(header.get("model")),
        task=f"{task}-{sample.get('id')}",
        rollout=epoch - 1 if isinstance(epoch, int) and epoch >= 1 else None,
        outcomes=_outcomes(sample.get("scores")),
        attributes={CUT: f"limit of {limit.get('type')}"} if limit else {},
        metadata=mapping_of(sample.get("metadata")),
        tags=texts_of(header.get("tags")),
        failure=RunFailure(kind="ModelError", message=str(mapping_of(error).get("message", error))) if error else None,
    )


def _message(message: JSON) -> JSON:
    known = mapping_of(message)
    kept = {key: known[key] for key in ("role", "content", "tool_calls", "tool_call_id") if known.get(key) is not None}
    if known.get("role") == "tool":
        failed = known.get("error")
        kept["is_error"] = bool(failed)
        if failed and not kept.get("content"):
            kept["content"] = str(mapping_of(failed).get("message", failed))
        if isinstance(known.get("function"), str):
            kept["name"] = known["function"]
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call(mapping_of(call)) for call in kept["tool_calls"]]
    return kept if known else message


def _call(call: Mapping[str, JSON]) -> JSON:
    inner = call.get("function")
    name = inner.get("name") if isinstance(inner, Mapping) else inner
    return {"id": call.get("id"), "name": name, "arguments": call.get("arguments"), "error": call.get("parse_error")}


def _outcomes(scores: JSON) -> dict[str, float]:
    """The scores that are numbers, by their scorer, and where one gives several by `scorer.name`; the only one, or the
    first, is the official reward too."""
    found: dict[str, float] = {}
    for name, score in mapping_of(scores).items():
        value = mapping_of(score).get("value", score)
        several = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
        found |= {key: number for key, one in several.items() if (number := _number(one)) is not None}
    return {OFFICIAL: next(iter(found.values())), **found} if found else {}


def _number(value: JSON) -> float | None:
    """A score as a number, None for one in words, with which no reward can be compared."""
    if isinstance(value, str) and value in _LETTERS:
        return _LETTERS[value]
    try:
        return number_of(value, "score") if isinstance(value, bool | int | float | str) else None
    except TraceError:
        return None


__all__ = ["is_inspect", "read_inspect", "samples"]
