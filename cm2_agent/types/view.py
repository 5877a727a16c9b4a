"""The View: a dialogue up to a step, with the current turn marked; the only argument of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from cm2_agent.types.json_values import JSON, canonical_json, same_json
from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.tool_use import CallStatus
from cm2_agent.types.trace import Step, Trace, Turn


@dataclass(frozen=True, kw_only=True)
class CallView:
    """One tool call seen in a view.

    `arguments` are those that ran, where a person or a middleware changed the model's. `step` is the 0-based step
    within the scope at which it was made. `status` says what became of it: `invalid` (it could not be parsed, its
    arguments are no object, or no tool has its name), `not_run` (nothing was executed to its end, as where the run
    ended first or a person refused the call), `failed` or `ok`. `error` is what a tool raised that never answered: it
    ended the run."""

    name: str
    arguments: JSON
    step: int
    response: ToolCallResponse | None
    status: CallStatus
    error: str | None = None

    @property
    def result(self) -> JSON:
        """What the tool answered, None where nothing came back."""
        return None if self.response is None else self.response.response

    @property
    def failed(self) -> bool:
        """True where the answer is an error, and where the tool raised."""
        return self.status == "failed" or (self.response is not None and self.response.error)


@dataclass(frozen=True, kw_only=True)
class View:
    """The dialogue up to and with step `seen` (a count: 0 = before the first) of its scope.

    The scope is one turn (`turn` is its 0-based index), or the whole dialogue for the closing block (`turn` is None).
    Everything but `user_text`, `turns` and `dialogue_steps` speaks of the scope.

    >>> from cm2_agent import Message, Run, ToolCall, Trace, View
    >>> call = ToolCall(id="1", name="get_order", arguments={"id": 7})
    >>> asked = Message.of("user", "Where is order 7?")
    >>> view = View.of(Trace.of(Run(id="run", messages=(asked, Message.of("assistant", calls=[call])))), turn=0)
    >>> view.called("get_order", with_={"id": {"from": "user"}}), view.reply
    (True, '')
    """

    trace: Trace
    turn: int | None
    seen: int

    @classmethod
    def of(cls, trace: Trace, turn: int | None = None) -> View:
        """The view at the end of a turn, or of the whole dialogue."""
        scope = trace.steps if turn is None else trace.turns[turn].steps
        return cls(trace=trace, turn=turn, seen=len(scope))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the scope so far."""
        scope = self.trace.steps if self.turn is None else self.trace.turns[self.turn].steps
        return scope[: self.seen]

    @property
    def ended(self) -> bool:
        """True at the last step of the scope."""
        scope = self.trace.steps if self.turn is None else self.trace.turns[self.turn].steps
        return self.seen >= len(scope)

    @cached_property
    def dialogue_steps(self) -> tuple[Step, ...]:
        """All steps so far, those of earlier turns too."""
        if self.turn is None:
            return self.steps
        return tuple(step for turn in self.trace.turns[: self.turn] for step in turn.steps) + self.steps

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns up to and with the current one (its later steps are still in it: use `steps`)."""
        return self.trace.turns if self.turn is None else self.trace.turns[: self.turn + 1]

    @property
    def user(self) -> str:
        """The user message that opens this turn; all user messages for the closing block."""
        turns = self.trace.turns if self.turn is None else (self.trace.turns[self.turn],)
        return "\n".join(message.text for turn in turns for message in turn.user)

    @property
    def user_text(self) -> str:
        """All user messages so far."""
        return "\n".join(message.text for turn in self.turns for message in turn.user)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The assistant's messages of the scope so far."""
        return tuple(step.message for step in self.steps)

    @cached_property
    def all_calls(self) -> tuple[CallView, ...]:
        """Every tool call of the scope so far, in order."""
        return tuple(
            CallView(
                name=use.call.name,
                arguments=use.arguments,
                step=number,
                response=use.response,
                status=use.status,
                error=use.error,
            )
            for number, step in enumerate(self.steps)
            for use in step.tool_uses
        )

    def calls(
        self,
        name: str | None = None,
        with_: Mapping[str, JSON] | None = None,
        *,
        status: CallStatus | None = None,
    ) -> tuple[CallView, ...]:
        """The calls of the scope so far; of one tool, with these arguments among its own, of one status, where asked
        for.

        A value of `with_` is a JSON value to equal, or `{"from": "user"}`: it occurs in a user message so far, or
        `{"from": "tool"}`: in a tool result of an earlier step of the dialogue."""
        found = tuple(
            call
            for call in self.all_calls
            if (name is None or call.name == name) and (status is None or call.status == status)
        )
        return found if not with_ else tuple(call for call in found if self._matches(call, with_))

    def called(self, name: str, *, with_: Mapping[str, JSON] | None = None, before: str | None = None) -> bool:
        """Whether the tool was called in the scope so far. With `before="reply"`: in a step before the first reply
        (true from the call's step on, if no reply came before it); with `before=TOOL`: in a step before the first call
        of that tool."""
        limit = len(self.steps)
        if before == "reply":
            limit = next((number for number, step in enumerate(self.steps) if step.is_reply), limit)
        elif before is not None:
            limit = next((call.step for call in self.all_calls if call.name == before), limit)
        return any(call.step < limit for call in self.calls(name, with_))

    def results(self, name: str | None = None) -> tuple[JSON, ...]:
        """What the tools (or one tool) answered in the scope so far; failures are left out."""
        return tuple(call.result for call in self.calls(name) if call.response is not None and not call.failed)

    @property
    def failed_calls(self) -> tuple[CallView, ...]:
        return tuple(call for call in self.all_calls if call.failed)

    @property
    def replies(self) -> tuple[str, ...]:
        """The agent's replies in the scope so far: the texts of steps without a tool call."""
        return tuple(step.message.text for step in self.steps if step.is_reply)

    @property
    def reply(self) -> str:
        """The last reply of the scope so far, empty before there is one."""
        return self.replies[-1] if self.replies else ""

    def said_by_user(self, value: JSON) -> bool:
        """Whether the value stands in a user message so far, as a whole word and whatever its case."""
        return occurs(value, self.user_text)

    def told_by_tool(self, value: JSON, before_step: int | None = None) -> bool:
        """Whether the value stands in a tool result of the dialogue so far (of earlier steps than `before_step` of the
        scope)."""
        steps = self.dialogue_steps
        if before_step is not None:
            steps = steps[: len(steps) - len(self.steps) + before_step]
        return any(occurs(value, as_text(response.response)) for step in steps for response in step.responses)

    def _matches(self, call: CallView, wanted: Mapping[str, JSON]) -> bool:
        if not isinstance(call.arguments, Mapping):
            return False
        for key, value in wanted.items():
            if key not in call.arguments:
                return False
            argument = call.arguments[key]
            if isinstance(value, Mapping) and set(value) == {"from"}:
                by_user = value["from"] == "user"
                if not (self.said_by_user(argument) if by_user else self.told_by_tool(argument, call.step)):
                    return False
            elif not same_json(argument, value):
                return False
        return True


def as_text(value: JSON) -> str:
    """A JSON value as it would be read: text as it is, anything else as canonical JSON."""
    return value if isinstance(value, str) else canonical_json(value)


def occurs(value: JSON, text: str) -> bool:
    """Whether the value, spelled as text, stands in the text with no letter or digit touching it, whatever the case.

    >>> occurs(7, "order 7?"), occurs(7, "order 17")
    (True, False)
    """
    needle, hay = as_text(value).casefold().strip(), text.casefold()
    if not needle:
        return False
    start = hay.find(needle)
    while start >= 0:
        before, after = hay[start - 1 : start], hay[start + len(needle) : start + len(needle) + 1]
        if not (before.isalnum() and needle[0].isalnum()) and not (after.isalnum() and needle[-1].isalnum()):
            return True
        start = hay.find(needle, start + 1)
    return False
