"""`send_verdicts`: the verdicts and rewards of imported traces, back to the tool that they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from cm2_agent.errors import SendError
from cm2_agent.integrations.verdict_feedback import Feedback, Receiver, feedback_of
from cm2_agent.store import SQLStore, TraceFilter
from cm2_agent.store.sent_verdicts import SentVerdicts
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

AT_ONCE = 50
"""So many traces are read, sent and noted together."""


@dataclass(frozen=True, kw_only=True)
class SentCounts:
    """What a sending did.

    Args:
        traces: Traces of which something was sent.
        verdicts: Verdicts that were taken.
        rewards: Rewards that were taken.
        unchanged: Traces of which all was sent before.
        elsewhere: Scored traces that did not come from this tool.
        null: Verdicts and rewards that nobody could tell, which are never sent.
        refused: Verdicts and rewards that the tool did not take, by its words.
    """

    traces: int = 0
    verdicts: int = 0
    rewards: int = 0
    unchanged: int = 0
    elsewhere: int = 0
    null: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "refused": dict(self.refused)}


@dataclass(kw_only=True)
class _Count:
    """The counts of a sending under way."""

    numbers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def result(self) -> SentCounts:
        return SentCounts(**self.numbers, refused=dict(self.refused))


def receiver_of(tool: str, url: str | None = None, *, counting: bool = False) -> Receiver:
    """The receiver of a tool's name. Raises SendError for an unknown one, and what the receiver raises.

    Args:
        tool: "langfuse", "phoenix" or "langsmith".
        url: Its address (default: as its own environment variables say).
        counting: Nothing will be sent: keys may be missing.
    """
    if tool == "langfuse":
        from cm2_agent.integrations.langfuse_scores import LangfuseScores

        return LangfuseScores(url, counting=counting)
    if tool == "phoenix":
        from cm2_agent.integrations.phoenix_annotations import PhoenixAnnotations

        return PhoenixAnnotations(url)
    if tool == "langsmith":
        from cm2_agent.integrations.langsmith_feedback import LangSmithFeedback

        return LangSmithFeedback(url, counting=counting)
    raise SendError(f"tool {tool!r} takes no verdicts; expected one of: langfuse, phoenix, langsmith")


def send_verdicts(
    store: SQLStore,
    to: Receiver | str,
    *,
    where: TraceFilter | None = None,
    reward: str | None = None,
    prefix: str = "",
    redact: Callable[[str], str] | None = None,
    again: bool = False,
    dry_run: bool = False,
    progress: Callable[[], object] | None = None,
) -> SentCounts:
    """Send the verdicts and rewards of scored traces to the tool that the traces were imported from.

    Names, values, and as comments the reasons, the judge's words and its quotes are sent; no dialogue is. What the tool
    has acknowledged is noted in the store and not sent again unless it changed; a verdict that changed replaces the
    earlier one, by an id that stays. A sending that was broken off goes on where it stopped.

    Args:
        store: The project's store.
        to: "langfuse", "phoenix" or "langsmith", set up by their own environment variables; or an object with `tool`,
            `url` and `send(feedback)`.
        where: Only traces that this filter lets through.
        reward: The reward version (default: each trace's newest).
        prefix: Put before every name.
        redact: Applied to every comment.
        again: Send what was acknowledged before too.
        dry_run: Count, and send nothing; no keys are needed.
        progress: Called once for each trace.

    Raises:
        SendError: The tool cannot be reached or refuses whatever is sent; what it took before is noted.
        MissingExtra: The tool's SDK is not installed.

    >>> from cm2_agent import SQLStore, send_verdicts
    >>> class Printer:
    ...     tool, url = "langfuse", "here"
    ...     def send(self, feedback):
    ...         return {}
    >>> send_verdicts(SQLStore("sqlite://"), Printer()).traces
    0
    """
    receiver = receiver_of(to, counting=dry_run) if isinstance(to, str) else to
    noted = SentVerdicts(store, f"{receiver.tool} {receiver.url}")
    count = _Count()
    scored = store.scored_traces(where, reward=reward)
    names: dict[str, str | None] = {}
    while batch := list(islice(scored, AT_ONCE)):
        known = {} if again else noted.digests(trace.id for trace, _ in batch)
        for hash in {score.checklist for _, score in batch if score is not None and score.checklist is not None}:
            if hash not in names:
                checklist = store.checklist(hash)
                names[hash] = None if checklist is None else checklist.name
        fresh = dict(_changed(batch, receiver.tool, names, prefix, redact, known, count))
        refused = {} if dry_run else receiver.send([one for feedback, _ in fresh.values() for one in feedback])
        done: dict[str, str] = {}
        for trace, (feedback, digest) in fresh.items():
            taken = [one for one in feedback if one.id not in refused]
            if len(taken) == len(feedback):
                done[trace] = digest
            count.numbers["traces"] += bool(taken)
            for one in taken:
                count.numbers["rewards" if one.passed is None else "verdicts"] += 1
        count.refused.update(refused.values())
        if done and not dry_run:
            noted.save(done)
        for _ in batch:
            if progress is not None:
                progress()
    return count.result()


def _changed(
    scored: Iterable[tuple[Trace, Score | None]],
    tool: str,
    names: Mapping[str, str | None],
    prefix: str,
    redact: Callable[[str], str] | None,
    known: Mapping[str, str],
    count: _Count,
) -> Iterator[tuple[str, tuple[list[Feedback], str]]]:
    """The feedback of the scored traces that has not been sent as it is, with its digest; the rest is counted."""
    for trace, score in scored:
        if score is None:
            continue
        checklist = None if score.checklist is None else names[score.checklist]
        feedback, left = feedback_of(trace, score, tool, checklist=checklist, prefix=prefix, redact=redact)
        if feedback or not left["elsewhere"]:  # what is NULL elsewhere is none of this tool's
            count.numbers["null"] += left["null"]
        digest = content_hash([one.to_json() for one in feedback])
        if not feedback:
            count.numbers["elsewhere"] += bool(left["elsewhere"])
        elif known.get(trace.id) == digest:
            count.numbers["unchanged"] += 1
        else:
            yield trace.id, (feedback, digest)


__all__ = ["SentCounts", "receiver_of", "send_verdicts"]
