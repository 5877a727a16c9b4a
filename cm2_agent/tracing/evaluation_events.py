"""The sink that sends each verdict as the OpenTelemetry event `gen_ai.evaluation.result` on the span that it judges.

An event put on an ended span is dropped, so these go through the Logs API with the span's context: any backend that
joins logs to spans shows them there. Where the application has installed no logger provider nothing is done."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING

from opentelemetry import _logs as otel
from opentelemetry import trace as spans
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from cm2_agent.dialects import semconv
from cm2_agent.tracing.span_processor import content_allowed
from cm2_agent.types.not_applicable import REASON as NOT_APPLICABLE
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Step, Trace

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

__all__ = ["EvaluationEvents"]

_CAPTURED = re.compile(r"[0-9a-f]{48}")
"""The id of a run that was captured here: trace id and span id of its root."""
_REMEMBERED = 4096
"""How many traces' last verdicts are remembered; an older trace that goes on has its verdicts sent again."""


class EvaluationEvents:
    """A sink: an event for each verdict of a scored trace, on the model call that wrote the judged step.

    That is the step from which the item is satisfied, else the last one of its turn; verdicts on the whole trace go to
    the root span of the last run. A trace is scored again after each run: only what is new or has changed is sent.
    `score.value` is 1.0 or 0.0 and `score.label` pass or fail; a NULL has neither, and `error.type` says its cause; an
    item that does not apply has the label `not applicable` alone. The explanation may quote the dialogue, so it leaves
    only where message content does. Turns that were not reached send nothing.

    `provider`: by default the one that the application has installed, looked up each time. `capture_content`: whether
    explanations leave; by default where the environment variable OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is
    `event_only`, `span_and_event` or `true`.
    """

    def __init__(self, provider: otel.LoggerProvider | None = None, *, capture_content: bool | None = None) -> None:
        self._provider, self._capture_content = provider, capture_content
        self._sent: OrderedDict[tuple[str, str], dict[tuple[int | None, str], bool | None]] = OrderedDict()

    def __call__(self, trace: Trace, score: Score | None) -> None:
        provider = self._provider if self._provider is not None else otel.get_logger_provider()
        if score is None or type(provider).__module__.startswith(otel.__name__):  # the API's own providers do nothing
            return
        logger = provider.get_logger("cm2_agent", schema_url=semconv.SCHEMA_URL)
        explained = content_allowed("events") if self._capture_content is None else self._capture_content
        sent = self._sent_before(trace.id, score.reward_version)
        run_of_call = {call.span_id: run for run in trace.runs for call in run.calls}
        # Turns of the history happened in another trace, or nowhere that we know.
        shown = sum(message.role == "assistant" for message in trace.history)
        for turn in score.turns:
            if not turn.reached or (turn.turn is not None and turn.turn >= len(trace.turns)):
                continue
            steps = trace.turns[turn.turn].steps if turn.turn is not None else ()
            if steps and steps[-1].number < shown:
                continue
            for verdict in turn.verdicts:
                key = (turn.turn, verdict.item)
                if key in sent and sent[key] == verdict.value:
                    continue
                context = _context(trace, steps, verdict, run_of_call)
                if context is None:
                    continue
                logger.emit(
                    context=spans.set_span_in_context(NonRecordingSpan(context)),
                    severity_number=otel.SeverityNumber.INFO,
                    attributes=_attributes(trace, score, turn.turn, verdict, explained=explained),
                    event_name=semconv.EVALUATION_RESULT,
                )
                sent[key] = verdict.value

    def _sent_before(self, trace_id: str, version: str) -> dict[tuple[int | None, str], bool | None]:
        sent = self._sent.pop((trace_id, version), {})
        self._sent[trace_id, version] = sent
        while len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
        return sent


def _context(
    trace: Trace, steps: tuple[Step, ...], verdict: Verdict, run_of_call: dict[str, Run]
) -> SpanContext | None:
    """The context of the judged span, None for a trace whose spans were not ours."""
    run, span_id = trace.runs[-1], trace.runs[-1].id[32:]
    if steps:
        row = len(steps) if verdict.step is None else min(verdict.step, len(steps))
        call = steps[row - 1].call
        if call is not None and call.span_id in run_of_call:
            run, span_id = run_of_call[call.span_id], call.span_id
    if _CAPTURED.fullmatch(run.id) is None:
        return None
    return SpanContext(
        int(run.id[:32], 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


def _attributes(
    trace: Trace, score: Score, turn: int | None, verdict: Verdict, *, explained: bool
) -> dict[str, AnyValue]:
    found: dict[str, AnyValue] = {semconv.EVALUATION_NAME: verdict.item, semconv.REWARD_VERSION: score.reward_version}
    if turn is not None:
        found[semconv.TURN] = turn
    thread = trace.runs[-1].thread
    if thread is not None:  # of a branch too: its spans have the thread's id
        found[semconv.CONVERSATION] = thread
    if not verdict.applies:
        found[semconv.EVALUATION_LABEL] = NOT_APPLICABLE
    elif verdict.value is None:
        found[semconv.ERROR_TYPE] = verdict.cause or verdict.reason or "unknown"
    else:
        found[semconv.EVALUATION_VALUE] = float(verdict.value)
        found[semconv.EVALUATION_LABEL] = "pass" if verdict.value else "fail"
    explanation = verdict.explanation or verdict.reason
    if explanation is not None and explained:
        found[semconv.EVALUATION_EXPLANATION] = explanation
    return found
