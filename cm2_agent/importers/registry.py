"""The formats that come with CM2: for each its name, how a record of it is recognised, and where its reader is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from cm2_agent.importers import langfuse_export, langsmith_runs, mlflow_traces, span_rows
from cm2_agent.importers.answer_pairs import PAIRS, PREFERENCES, STORED, pair_of, preference_of
from cm2_agent.importers.bfcl_results import is_bfcl
from cm2_agent.importers.cm2_lines import is_cm2
from cm2_agent.importers.inspect_logs import is_inspect, samples
from cm2_agent.importers.message_styles import TRANSCRIPTS, style_of, transcript_of
from cm2_agent.importers.swe_agent import is_swe_agent
from cm2_agent.importers.tau2_results import is_tau2, simulations
from cm2_agent.types.json_values import JSON

Sniff = Callable[[JSON], str | None]
"""Why a record is of the format, None where it is not."""
Split = Callable[[JSON], Iterator[tuple[str, JSON]]]
"""The dialogues of one record: what to call each, and its own record."""


@dataclass(frozen=True, kw_only=True)
class Gather:
    """What a row of spans belongs to, and when it began (nanoseconds, 0 unknown)."""

    trace: Callable[[JSON], str | None]
    time: Callable[[JSON], int]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format. `reader` names a function within `cm2_agent.importers`; `chats`: it gives a Chat a record, not what
    an importer gives; `spans`: it gives the spans of a trace, whose rows are gathered so."""

    name: str
    sniff: Sniff
    reader: str
    chats: bool = True
    split: Split | None = None
    spans: Gather | None = None


def _style(name: str) -> Sniff:
    def sniff(record: JSON) -> str | None:
        key, messages = transcript_of(record)
        style = style_of(messages)
        if style is None or style.name != name:
            return None
        where = "a list" if key is None else f"`{key}`"
        weights = name == "openai" and any("weight" in message for message in messages)
        return f"{where}: {style.says}{', some with a `weight` (fine-tuning)' if weights else ''}"

    return sniff


def _has(*keys: str, says: str, **kinds: type | tuple[type, ...]) -> Sniff:
    def sniff(record: JSON) -> str | None:
        if not isinstance(record, Mapping) or not all(key in record for key in (*keys, *kinds)):
            return None
        return says if all(isinstance(record[key], kind) for key, kind in kinds.items()) else None

    return sniff


def _when(is_one: Callable[[JSON], object], says: str) -> Sniff:
    return lambda record: says if is_one(record) else None


def _pair(record: JSON) -> str | None:
    pair = pair_of(record)
    return None if pair is None else f"an object with `{pair[0]}` and `{pair[1]}`"


def _preference(record: JSON) -> str | None:
    pair = preference_of(record)
    return None if pair is None else f"an object with `{pair[0]}` and `{pair[1]}`"


def _stored(record: JSON) -> str | None:
    if not isinstance(record, Mapping):
        return None
    for asked, answered in STORED:
        if asked in record and answered in record:
            found = [style_of(one if isinstance(one, list) else [one]) for one in (record[asked], record[answered])]
            bodies = [isinstance(record[key], Mapping) and _is_body(record[key]) for key in (asked, answered)]
            texts = [isinstance(record[key], str) for key in (asked, answered)]
            if "instruction" in record and all(texts):  # `input` is what the instruction is about
                return None
            if all(style is not None or body or text for style, body, text in zip(found, bodies, texts, strict=True)):
                return f"an object with `{asked}` and `{answered}`"
    sample = record.get("sample")
    if isinstance(sample, Mapping) and "output" in sample and ("datasource_item" in record or "item" in record):
        return "an item of an evaluation's run: `sample` with `output`"
    if record.get("object") in ("response", "chat.completion"):
        return f"an object that calls itself {record['object']}"
    if record.get("type") == "message" and "stop_reason" in record and isinstance(record.get("content"), list):
        return "an answer of Anthropic's Messages API"
    return None


_BODIES = ("messages", "choices", "output", "input", "content", "contents", "candidates")


def _is_body(value: Mapping[str, JSON]) -> bool:
    """Whether it is the body of a request or of a response."""
    return any(isinstance(value.get(key), list) for key in _BODIES) or isinstance(value.get("input"), str)


def _batch(record: JSON) -> str | None:
    if not isinstance(record, Mapping):
        return None
    answer = record.get("response")
    if (
        "key" in record
        and "request" not in record
        and isinstance(answer, Mapping)
        and isinstance(answer.get("candidates"), list)
    ):  # Gemini's
        return "an object with `key` and `response`"
    if "custom_id" not in record:
        return None
    return "an object with `custom_id` and `response`" if {"response", "result"} & record.keys() else None


def dialogues_by_name(record: JSON) -> Iterator[tuple[str, JSON]]:
    """The dialogues of an object whose values are lists of messages, by their keys; any other record as it is."""
    if _by_name(record) is None:
        yield "", record
        return
    for name, messages in record.items():
        yield f"dialogue {name!r}", {"id": name, "messages": messages}


_HALVES = frozenset(
    {*TRANSCRIPTS, *chain.from_iterable((*STORED, *PAIRS, *PREFERENCES))} | {"inputs", "outputs", "chosen", "rejected"}
)
"""Words of keys under which a part of a dialogue stands: such a key is no dialogue's name."""


def _by_name(record: JSON) -> str | None:
    if not isinstance(record, Mapping) or not record:
        return None
    several = all(isinstance(value, list) and style_of(value) is not None for value in record.values())
    named = several and not any(_HALVES & set(re.split(r"\W|_", str(key))) for key in record)
    return "an object of dialogues by their names" if named else None


FORMATS: Final[tuple[Format, ...]] = (
    Format(
        name="cm2",
        sniff=_when(is_cm2, "an object with `trace` and `score`, as `cm2 export` writes it"),
        reader="cm2_lines:read_cm2",
        chats=False,
    ),
    Format(
        name="tau2",
        sniff=_when(is_tau2, "an object with `tasks` and `simulations`"),
        reader="tau2_results:read_tau2",
        split=simulations,
    ),
    Format(
        name="tau-bench",
        sniff=_has("task_id", says="an object with `task_id` and `traj`", traj=list),
        reader="tau_bench:read_tau_bench",
        chats=False,
    ),
    Format(
        name="inspect",
        sniff=_when(is_inspect, "an object with `eval` and `samples`"),
        reader="inspect_logs:read_inspect",
        split=samples,
    ),
    Format(
        name="swe-agent",
        sniff=_when(is_swe_agent, "an object with `history` or `trajectory`"),
        reader="swe_agent:read_swe_agent",
    ),
    Format(name="bfcl", sniff=_when(is_bfcl, "an object with `id` and `result`"), reader="bfcl_results:read_bfcl"),
    Format(
        name="langsmith",
        sniff=_when(langsmith_runs.is_run, "a run with `run_type` and `inputs`"),
        reader="langsmith_runs:read_runs",
        spans=Gather(trace=langsmith_runs.trace_of, time=langsmith_runs.time_of),
    ),
    Format(
        name="langsmith-dataset",
        sniff=_when(langsmith_runs.is_example, "an example with `inputs` and `outputs`"),
        reader="langsmith_runs:read_example",
    ),
    Format(
        name="langfuse",
        sniff=_when(langfuse_export.is_langfuse, "observations with `traceId`, or a trace with `observations`"),
        reader="langfuse_export:read_langfuse",
        spans=Gather(trace=langfuse_export.trace_of, time=langfuse_export.time_of),
    ),
    Format(
        name="mlflow",
        sniff=_when(mlflow_traces.is_mlflow, "a trace with `info` and `data.spans`"),
        reader="mlflow_traces:read_mlflow",
        spans=Gather(trace=mlflow_traces.trace_of, time=mlflow_traces.time_of),
    ),
    Format(
        name="phoenix",
        sniff=_when(span_rows.is_phoenix, "spans with OpenInference's attributes (`llm.input_messages`)"),
        reader="span_rows:read_span_rows",
        spans=Gather(trace=span_rows.trace_of, time=span_rows.time_of),
    ),
    Format(
        name="otel",
        sniff=_when(span_rows.is_otel, "spans with `attributes` and a trace's id"),
        reader="span_rows:read_span_rows",
        split=span_rows.batches,
        spans=Gather(trace=span_rows.trace_of, time=span_rows.time_of),
    ),
    Format(name="openai-batch", sniff=_batch, reader="answer_pairs:read_batch_output"),
    Format(name="dpo", sniff=_preference, reader="answer_pairs:read_preferences"),
    Format(
        name="openai",
        sniff=lambda record: _by_name(record) or _style("openai")(record),
        reader="openai_chat:read_openai_chat",
        split=dialogues_by_name,
    ),
    *(
        Format(name=name, sniff=_style(name), reader="openai_chat:read_openai_chat")
        for name in (
            "ai-sdk",
            "anthropic",
            "openai-responses",
            "langchain",
            "pydantic-ai",
            "sharegpt",
            "gemini",
            "genai",
        )
    ),
    Format(name="openai-stored", sniff=_stored, reader="answer_pairs:read_stored_completion"),
    Format(name="prompt-completion", sniff=_pair, reader="answer_pairs:read_prompt_completion"),
    Format(
        name="labels",
        sniff=lambda record: (
            _has("trace", "rater", "value", says="an object with `trace`, `rater` and `value`")(record)
            or _has("agent", "task", "human", "judge", says="a judgement of DevAI's")(record)
        ),
        reader="human_labels:read_label",
        chats=False,
    ),
)
"""In the order in which they are asked: what is a special case of another comes before it."""
BY_NAME: Final[Mapping[str, Format]] = {one.name: one for one in FORMATS}

__all__ = ["BY_NAME", "FORMATS", "Format"]
