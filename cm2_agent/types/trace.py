"""The dialogue: a trace made of runs, cut into turns and steps (docs/method.md, "Run, trace, turn, step")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from cm2_agent.errors import TraceError
from cm2_agent.types.dialogue_content import dialogue_content
from cm2_agent.types.dialogue_words import DialogueWords
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.messages import SHOWN, Message
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure
from cm2_agent.types.run_attributes import CUT, TASK_ID, TASK_VERSION
from cm2_agent.types.scope import Scope
from cm2_agent.types.sub_agents import scope_of_steps, steps_of_sub_agents
from cm2_agent.types.turn import RunEnd, Step, Turn
from cm2_agent.types.turn_cutter import TurnCutter


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A dialogue: the runs of one conversation in order. `outcomes` are results known from elsewhere, such as a
    benchmark's own reward.

    >>> from cm2_agent import Message, Run, Trace
    >>> hello = (Message.of("user", "Hello"), Message.of("assistant", "Hello, how can I help?"))
    >>> trace = Trace.of(Run(id="run-1", messages=hello))
    >>> len(trace.turns), trace.turns[0].user[0].text, trace.steps[0].is_reply
    (1, 'Hello', True)
    """

    id: str
    runs: tuple[Run, ...]
    outcomes: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Trace:
        """The trace of a single run."""
        return cls(id=run.trace_id, runs=(run,))

    @cached_property
    def attributes(self) -> dict[str, JSON]:
        """The runs' attributes, later runs over earlier ones."""
        return {key: value for run in self.runs for key, value in run.attributes.items()}

    @property
    def task_id(self) -> str | None:
        value = self.attributes.get(TASK_ID)
        return None if value is None else str(value)

    @property
    def task_version(self) -> int | None:
        """The version of its task; None where it has no task, or the recording does not say which."""
        value = self.attributes.get(TASK_VERSION)
        return value if isinstance(value, int) else None

    @property
    def failure(self) -> RunFailure | None:
        """Why the dialogue ended badly: the failure of its last run."""
        return self.runs[-1].failure if self.runs else None

    @property
    def history(self) -> tuple[Message, ...]:
        """The beginning of the dialogue that none of the trace's runs wrote: a branch's, or the caller's own."""
        return self.runs[0].history if self.runs else ()

    @property
    def branch(self) -> Branch | None:
        """Where the trace left another one, None for one that began by itself."""
        return self.runs[0].branch if self.runs else None

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The dialogue: what the first run was shown of it, then what each run added, and where a later one was shown
        more than that (a person's answer, a turn that ran elsewhere), this before it; calls with the arguments that
        ran."""
        steps = iter(self.steps)
        runs = zip(self.shown_before, self.runs, strict=True)
        every = chain.from_iterable(chain(before, run.messages) for before, run in runs)
        return tuple(next(steps).message if message.role == "assistant" else message for message in every)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The dialogue cut at user messages. A user message that no assistant step answers opens no turn."""
        return self._cut[0]

    @cached_property
    def run_ends(self) -> tuple[RunEnd, ...]:
        """For each run how far the dialogue had come when it ended."""
        return self._cut[1]

    @cached_property
    def broken_off(self) -> tuple[int, ...]:
        """The places of the runs that a limit or an exception ended."""
        return tuple(place for place, run in enumerate(self.runs) if _broken_off(run))

    @property
    def shown_before(self) -> tuple[tuple[Message, ...], ...]:
        """For each run the messages before its own that no run wrote (`messages`)."""
        return self._cut[2]

    @cached_property
    def unwritten(self) -> frozenset[int]:
        """The numbers of the steps that no run wrote: they stand in the history that the runs were shown."""
        found: set[int] = set()
        number = 0
        for before, run in zip(self.shown_before, self.runs, strict=True):
            shown = sum(message.role == "assistant" for message in before)
            found.update(range(number, number + shown))
            number += shown + sum(message.role == "assistant" for message in run.messages)
        return frozenset(found)

    @cached_property
    def _cut(self) -> tuple[tuple[Turn, ...], tuple[RunEnd, ...], tuple[tuple[Message, ...], ...]]:
        cutter = TurnCutter()
        for run in self.runs:
            cutter.add(run)
        self.__dict__["_cutter"] = cutter
        return cutter.turns(), tuple(cutter.ends), tuple(cutter.before)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(chain.from_iterable(turn.steps for turn in self.turns))

    @cached_property
    def words(self) -> DialogueWords:
        """Where values stand in what users wrote and tools answered."""
        return DialogueWords(self.turns, self.__dict__.pop("_words_before", None))

    @cached_property
    def system(self) -> str:
        """The system prompts: what the dialogue begins with, and what its model calls were shown before it. Notes that
        the application wrote for the model meanwhile are not among them."""
        prompts: dict[str, None] = {}
        for messages in (self.history, *(run.messages for run in self.runs), *(call.input for call in self.calls)):
            for message in messages:
                if message.role != "system":
                    break
                if SHOWN not in message.extra:
                    prompts[message.text] = None
        return "\n".join(prompts)

    @cached_property
    def _scope(self) -> Scope:
        turns = self.turns
        return Scope(
            steps=self.steps,
            calls=tuple(chain.from_iterable(turn.dialogue_scope.calls for turn in turns)),
            replies=tuple(chain.from_iterable(turn.dialogue_scope.replies for turn in turns)),
        )

    def scope(self, turn: int | None) -> Scope:
        """What views of a turn, or (None) of the whole dialogue, share."""
        return self._scope if turn is None else self.turns[turn].scope

    def scope_of(self, agent: str | None, turn: int | None) -> Scope:
        """The scope with the calls and replies of one agent (None: of all), as `steps_of` has them."""
        whole = self.scope(turn)
        if agent is None or agent not in self._sub_agents:
            return whole.of_agent(agent)
        key = (turn, agent)
        if key not in self._sub_scopes:
            self._sub_scopes[key] = scope_of_steps(whole, self._sub_agents[agent])
        return self._sub_scopes[key]

    def steps_of(self, agent: str) -> tuple[Step, ...]:
        """The steps of one agent. Those of a sub-agent that wrote none of the dialogue's (inside a tool, say) stand at
        the step during which they ran."""
        return self._sub_agents.get(agent) or tuple(step for step in self.steps if step.agent == agent)

    @cached_property
    def _sub_agents(self) -> dict[str, tuple[Step, ...]]:
        return steps_of_sub_agents(self.runs, self.steps, self.unwritten)

    @cached_property
    def _sub_scopes(self) -> dict[tuple[int | None, str], Scope]:
        return {}

    def user_text(self, turn: int | None, *, alone: bool = False) -> str:
        """The user messages up to and with those of a turn, or that turn's alone; (None) those of the dialogue."""
        turns = self.turns if turn is None else self.turns[turn if alone else 0 : turn + 1]
        return "\n".join(message.text for one in turns for message in one.user)

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for run in self.runs for call in run.calls)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the dialogue holds, as 64 hexadecimal digits: the same through whichever door it came.

        It counts the system prompts, and of each message the role, the texts, the thinking, pictures and other parts,
        and the calls: their names, their arguments as canonical JSON, and their answers, found by position. It does not
        count ids, names of speakers, times, models, tokens, tool schemas, metadata, outcomes, whether an answer is
        marked as an error, how often a text was cut into parts, or where within a message thinking and calls stand.

        Raises:
            TypeError: an argument or a part is not JSON.

        >>> from cm2_agent import Message, Run, ToolCall, Trace
        >>> one, other = (
        ...     Trace.of(Run(id=name, messages=(Message.of("assistant", calls=[ToolCall(id=name, name="look")]),)))
        ...     for name in ("a", "b")
        ... )
        >>> one.content_hash == other.content_hash, len(one.content_hash)
        (True, 64)
        """
        return content_hash(dialogue_content(self.messages, self.calls))

    @property
    def policy(self) -> str | None:
        """The one policy version that wrote every step, None where it is unknown or there were several."""
        versions = {call.model_version for call in self.calls if call.message is not None}
        return versions.pop() if len(versions) == 1 else None

    def with_run(self, run: Run) -> Trace:
        """The trace with one more run, or with the run of that id replaced."""
        cutter: TurnCutter | None = self.__dict__.get("_cutter")
        if cutter is not None and len(cutter.ends) == len(self.runs) and run.id not in cutter.runs:
            grown = replace(self, runs=(*self.runs, run))
            self._pass_on(grown, run)
            return grown
        others = tuple(other for other in self.runs if other.id != run.id)
        grown = replace(self, runs=(*others, run))
        if len(others) == len(self.runs):
            self._pass_on(grown, run)
        return grown

    def _pass_on(self, grown: Trace, run: Run) -> None:
        """What is known of this trace and holds of one with a run more is not worked out again."""
        known, more = self.__dict__, grown.__dict__
        if "attributes" in known:
            more["attributes"] = {**known["attributes"], **run.attributes}
        if "broken_off" in known:
            more["broken_off"] = (*known["broken_off"], *([len(self.runs)] if _broken_off(run) else []))
        if known.get("words", known.get("_words_before")) is not None:
            more["_words_before"] = known.get("words", known.get("_words_before"))
        cutter: TurnCutter | None = known.pop("_cutter", None)
        if cutter is not None and len(cutter.ends) == len(self.runs):  # else another copy of this trace has gone on
            cutter.add(run)
            more["_cutter"] = cutter
            more["_cut"] = cutter.turns(), tuple(cutter.ends), tuple(cutter.before)

    def to_json(self) -> dict[str, JSON]:
        return {"id": self.id, "runs": [run.to_json() for run in self.runs], "outcomes": dict(self.outcomes)}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Trace:
        """Raises TraceError on a malformed record."""
        if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
            raise TraceError(f"not a trace: {str(data)[:80]!r}; expected the object that Trace.to_json writes")
        return cls(
            id=data["id"],
            runs=tuple(Run.from_json(run) for run in data.get("runs", ())),
            outcomes=dict(data.get("outcomes") or {}),
        )


def _broken_off(run: Run) -> bool:
    return run.status == "error" or run.attributes.get(CUT) is not None


__all__ = ["RunEnd", "Step", "Trace", "Turn"]
