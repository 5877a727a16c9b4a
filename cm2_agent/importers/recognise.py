"""Which format a file is of: said with the reason, or refused with what it holds and what is nearest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from rapidfuzz import fuzz

from cm2_agent.errors import TraceError
from cm2_agent.importers.json_records import Found, Problem
from cm2_agent.importers.message_styles import style_of, transcript_of
from cm2_agent.importers.openai_messages import ROLES
from cm2_agent.importers.registry import FORMATS, Format
from cm2_agent.types.json_values import JSON

LOOKED_AT: Final = 20
"""So many of the first records are looked at."""
_WRAPPERS: Final = (
    "data",
    "rows",
    "items",
    "records",
    "results",
    "examples",
    "conversations",
    "dialogues",
    "traces",
    "runs",
    "spans",
)
_DEEPEST: Final = 4
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "cm2": ("trace", "score"),
    "openai": ("messages", "role", "content", "tools", "tool_calls"),
    "sharegpt": ("conversations", "from", "value"),
    "prompt-completion": ("prompt", "completion", "question", "answer", "instruction", "output", "response"),
    "dpo": ("prompt", "chosen", "rejected", "preferred_output", "non_preferred_output"),
    "openai-stored": ("input", "output", "request", "response", "model"),
    "openai-batch": ("custom_id", "response", "error"),
    "tau-bench": ("task_id", "traj", "reward", "info", "trial"),
    "tau2": ("tasks", "simulations", "info"),
    "swe-agent": ("history", "trajectory", "environment", "info"),
    "inspect": ("eval", "samples", "version", "status"),
    "bfcl": ("id", "result", "inference_log"),
    "langsmith": ("inputs", "outputs", "run_type", "trace_id", "dotted_order"),
    "langfuse": ("traceId", "observations", "input", "output", "type"),
    "mlflow": ("info", "data", "spans", "request", "response"),
    "otel": ("trace_id", "span_id", "attributes", "name", "resourceSpans"),
    "phoenix": ("trace_id", "span_id", "attributes", "name", "context.trace_id"),
    "labels": ("trace", "item", "rater", "value"),
}
"""Keys that records of a format have, to find the nearest."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The format of a file, why, and its records, none of them lost by looking."""

    format: Format
    reason: str
    records: Iterator[Found | Problem]


def recognise(path: str | Path, records: Iterable[Found | Problem]) -> Recognised:
    """The format of the first record that is of one. Raises TraceError where none of the first ones is."""
    coming = iter(records)
    looked: list[Found | Problem] = []
    for one in coming:
        looked.append(one)
        if isinstance(one, Found):
            found = _format_of(one.value)
            if found is not None:
                return Recognised(format=found[0], reason=found[1], records=chain(looked, coming))
        if len(looked) >= LOOKED_AT:
            break
    raise TraceError(_unknown(path, looked))


def is_known(record: JSON) -> bool:
    """Whether a record is of one of the formats, or an object around records of one."""
    return _format_of(record) is not None or unwrapped(record) is not None


def _format_of(record: JSON) -> tuple[Format, str] | None:
    for one in FORMATS:
        reason = one.sniff(record)
        if reason is not None:
            return one, reason
    return None


def unwrapped(record: JSON, depth: int = _DEEPEST) -> tuple[Iterator[JSON], str | None] | None:
    """The records within an object that holds a list of them (`{"data": […]}`), or nothing but one of them
    (`{"data": {"messages": […]}}`), also where such objects are nested, and a note on what else it holds; None for any
    other."""
    if depth == 0 or not isinstance(record, Mapping) or _format_of(record) is not None:
        return None
    for key in _WRAPPERS:
        inner = record.get(key)
        if isinstance(inner, list) and inner and _format_of(inner[0]) is not None:
            return iter(inner), not_read(key, record)
    if len(record) != 1 or "request" in record:  # one without its answer is no dialogue
        return None
    (only,) = record.values()
    if isinstance(only, Mapping) and _format_of(only) is not None:
        return iter([only]), None
    return unwrapped(only, depth - 1)


def not_read(key: str, wrapper: Mapping[str, JSON]) -> str | None:
    """A note on the keys beside a list of records, None where there is none that holds something."""
    others = [
        f"`{str(name)[:40]}`" for name, value in wrapper.items() if name != key and value not in (None, "", [], {})
    ]
    if not others:
        return None
    more = f" and {len(others) - 8} more" if len(others) > 8 else ""
    return (
        f"of an object around records `{key}` alone was read; {len(others)} other keys were not:"
        f" {', '.join(others[:8])}{more}. Write what belongs to a dialogue into its own record, under `metadata`"
    )


def _unknown(path: str | Path, looked: list[Found | Problem]) -> str:
    values = [one.value for one in looked if isinstance(one, Found)]
    problems = [one for one in looked if isinstance(one, Problem)]
    names = ", ".join(one.name for one in FORMATS)
    if not looked:
        return f"{path}: holds no record. Expected at least one; of a table the first line names the columns alone"
    if not values:
        return f"{path}: none of its first {len(looked)} records can be read. {problems[0] if problems else ''}".strip()
    key, messages = transcript_of(values[0])
    if messages == []:
        where = "list" if key is None else repr(key)
        return f"{path}: its first record holds no messages ({where} is empty); expected at least one message"
    if isinstance(values[0], Mapping) and "testing_criteria" in values[0]:
        return f"{path}: is an evaluation of OpenAI's, no recording. Type: cm2 import openai-evals {path}"
    if (request := _request(values[0])) is not None:
        return f"{path}: is {request}"
    role = values[0].get("role") if isinstance(values[0], Mapping) else None
    if isinstance(role, str) and role.casefold() not in ROLES and isinstance(values[0].get("content"), str):
        return (
            f"{path}: its first record is a message of role {role[:40]!r}, which is unknown; expected one of"
            f" {', '.join(sorted(ROLES))}. Rename the roles in the file"
        )
    keys, near = _keys(values[0]), nearest(values[0])
    held = (
        f"an object with the keys {', '.join(keys)}" if keys else f"{type(values[0]).__name__} {str(values[0])[:40]!r}"
    )
    return (
        f"{path}: of no format that is known. Its first record is {held}. Nearest: {', '.join(near)}; all: {names}."
        f" Type: cm2 import {near[0]} FILE to read it as that (what does not fit is named by its line), or cm2 import"
        " MODULE:IMPORTER FILE with a reader of your own (docs/how-to/add-an-importer.md)"
    )


def _request(record: JSON) -> str | None:
    """What a file of requests without their answers is, and what to import in its place; None for any other."""
    record = record[0] if isinstance(record, list) and record else record
    if not isinstance(record, Mapping):
        return None
    listed = record.get("requests")
    inner = record if not isinstance(listed, list) or not listed else listed[0]
    if isinstance(inner, Mapping) and "custom_id" in inner and {"body", "params"} & inner.keys():
        return (
            "the input file of a batch: requests, each with its `custom_id`, and no answers. Type: cm2 import FILE with"
            " the batch's output file (its lines hold `custom_id` and `response` or `result`)"
        )
    if isinstance(record.get("request"), Mapping) and not {"response", "error", "status"} & record.keys():
        return (
            "a file of requests (`request`) without their answers, such as the input of a batch. Type: cm2 import FILE"
            " with the batch's output file (its lines hold `response` too)"
        )
    asked = record.get("input")
    if style_of(asked) is not None and not {"output", "response"} & record.keys():
        return (
            "a request of the Responses API (`input`), and no answer to it is in it. Import its response, whose"
            ' `output` holds the answer, or write both into one record, as in {"input": [...], "output": [...]}; a'
            " whole dialogue is the list of its items alone, or that list under `messages`"
        )
    return None


def _keys(value: JSON) -> list[str]:
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, Mapping):
        return []
    keys = [repr(str(key)[:40]) for key in value]
    return [*keys[:12], *([f"and {len(keys) - 12} more"] if len(keys) > 12 else [])]


def nearest(value: JSON) -> list[str]:
    """The names of the three formats whose keys are most like the record's, the nearest first."""
    own = {str(key) for key in value} if isinstance(value, Mapping) else set()

    def likeness(name: str) -> float:
        return sum(max((fuzz.ratio(key, known) for key in own), default=0.0) ** 2 for known in _KEYS[name]) / len(
            _KEYS[name]
        )

    known = [one.name for one in FORMATS if one.name in _KEYS]
    return sorted(known, key=likeness, reverse=True)[:3]


__all__ = ["LOOKED_AT", "Recognised", "is_known", "nearest", "not_read", "recognise", "unwrapped"]
