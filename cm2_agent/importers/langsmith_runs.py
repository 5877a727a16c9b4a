"""LangSmith's runs, a row each (`client.list_runs`, bulk export), and the examples of its datasets.

Source: docs.smith.langchain.com, "Run data format" and "Dataset"; a run has `run_type`, `inputs` and `outputs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cm2_agent.dialects import semconv
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, mapping_of, number_of, text_of, texts_of
from cm2_agent.importers.openai_messages import read_tools
from cm2_agent.importers.spans_to_traces import (
    PROJECT,
    TraceSpans,
    answered_messages,
    asked_messages,
    chat_attributes,
    left_over,
    nanoseconds,
    tool_attributes,
    unpacked,
)
from cm2_agent.types.json_values import JSON


def is_run(record: JSON) -> bool:
    """Whether it is a run."""
    known = mapping_of(record)
    return isinstance(known.get("run_type"), str) and "inputs" in known


def is_example(record: JSON) -> bool:
    """Whether it is an example of a dataset."""
    known = mapping_of(record)
    return "run_type" not in known and all(isinstance(known.get(key), Mapping) for key in ("inputs", "outputs"))


def trace_of(record: JSON) -> str | None:
    """The trace that a run belongs to."""
    known = mapping_of(record)
    return text_of(known.get("trace_id")) or text_of(known.get("id"))


def read_example(record: JSON) -> Chat:
    """An example → the dialogue of its inputs and reference outputs; what else these hold (a context, sources) is its
    metadata, under its own key. Raises TraceError."""
    known = mapping_of(record)
    asked, answered = known.get("inputs"), known.get("outputs")
    messages = (*asked_messages(asked), *answered_messages(answered))
    return Chat(
        messages=messages,
        key=["langsmith", known.get("id"), asked, answered],
        prefix="langsmith",
        task=text_of(known.get("id")),
        tools=read_tools(mapping_of(asked).get("tools")),
        metadata=_beside(left_over(asked, "user"), left_over(answered, "assistant"), known.get("metadata")),
    )


def _beside(asked: Mapping[str, JSON], answered: Mapping[str, JSON], metadata: JSON) -> dict[str, JSON]:
    """The example's metadata and what its halves hold beside the messages: a key that stands in two of them is named
    with its half (`inputs.context`)."""
    found = dict(mapping_of(metadata))
    for half, beside in (("inputs", asked), ("outputs", answered)):
        for key, value in beside.items():
            found[f"{half}.{key}" if key in found else key] = value
    return found


def time_of(record: JSON) -> int:
    """When a run began, in nanoseconds; 0 where it tells no time."""
    return nanoseconds(mapping_of(record).get("start_time"))


def read_runs(record: JSON) -> TraceSpans:
    """The runs of one trace → its spans and feedback. Raises TraceError."""
    rows = [one for row in (record if isinstance(record, list) else [record]) for one in _flat(mapping_of(row))]
    outcomes: dict[str, float] = {}
    for row in rows:
        for name, stats in mapping_of(row.get("feedback_stats")).items():
            try:
                value = number_of(mapping_of(stats).get("avg"), "feedback")
            except TraceError:
                continue
            if value is not None:
                outcomes[name] = value
    if len(outcomes) == 1:
        outcomes[OFFICIAL] = next(iter(outcomes.values()))
    return TraceSpans(spans=[_span(row) for row in rows], outcomes=outcomes, tool="langsmith")


def _flat(row: Mapping[str, JSON]) -> Iterator[Mapping[str, JSON]]:
    """A run and those within it."""
    waiting = [row]
    while waiting:
        one = waiting.pop(0)
        yield one
        children = one.get("child_runs")
        waiting += [mapping_of(child) for child in children] if isinstance(children, list) else []


def _span(row: Mapping[str, JSON]) -> SpanRecord:
    kind = str(row.get("run_type"))
    name = text_of(row.get("name")) or kind
    asked, answered = unpacked(row.get("inputs")), unpacked(row.get("outputs"))
    extra = mapping_of(unpacked(row.get("extra")))
    settings, metadata = mapping_of(extra.get("invocation_params")), mapping_of(extra.get("metadata"))
    tags = texts_of(row.get("tags"))
    attributes: dict[str, JSON] = {
        "metadata": {**metadata, **({"tags": list(tags)} if tags else {})},
        semconv.CONVERSATION: next(
            (text_of(metadata[key]) for key in ("thread_id", "conversation_id") if metadata.get(key)), None
        ),
        "session.id": text_of(metadata.get("session_id")),
    }
    if kind == "llm":
        model = settings.get("model") or settings.get("model_name") or metadata.get("ls_model_name")
        attributes |= chat_attributes(asked, answered, tools=settings.get("tools"), model=model)
    elif kind == "tool":
        arguments = (
            mapping_of(asked).get("input", asked) if isinstance(asked, Mapping) and set(asked) == {"input"} else asked
        )
        attributes |= tool_attributes(name, arguments, answered)
    elif row.get("parent_run_id") is None:
        attributes |= {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: name}
    else:
        attributes["gen_ai.step"] = name
    failed = bool(row.get("error"))
    project = text_of(row.get("session_id"))  # LangSmith's older name of a project
    start = nanoseconds(row.get("start_time"))
    return SpanRecord(
        trace_id=trace_of(row) or "trace",
        span_id=text_of(row.get("id")) or f"{name}-{start}",
        parent_id=text_of(row.get("parent_run_id")),
        name=name,
        start=start,
        end=max(start, nanoseconds(row.get("end_time"))),
        attributes={key: value for key, value in attributes.items() if value is not None},
        status="error" if failed else "ok",
        status_message=str(row.get("error")) if failed else None,
        resource={} if project is None else {PROJECT: project},
    )


__all__ = ["is_example", "is_run", "read_example", "read_runs", "time_of", "trace_of"]
