"""The View: a dialogue up to a step, with the current turn marked; the only argument of a check."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from cm2_agent.types.dialogue_words import as_text, occurs, stands_in
from cm2_agent.types.json_values import JSON, canonical_json, same_json
from cm2_agent.types.messages import Message
from cm2_agent.types.scope import CallView, Scope
from cm2_agent.types.tool_use import CallStatus
from cm2_agent.types.tool_words import own_words
from cm2_agent.types.trace import Step, Trace, Turn


@dataclass(frozen=True, kw_only=True)
class View:
    """The dialogue up to and with step `seen` (a count: 0 = before the first) of its scope.

    The scope is one turn (`turn` is its 0-based index), or the whole dialogue for the closing block (`turn` is None).
    Everything but `user_text`, `turns` and `dialogue_steps` speaks of the scope. With `agent`, its steps, calls and
    replies are those of that agent alone; steps are counted as in the whole scope, and what a sub-agent did inside a
    tool counts at the step that called it.

    >>> from cm2_agent import Message, Run, ToolCall, ToolCallResponse, Trace, View
    >>> asked = Message.of("user", "Where is order 7?")
    >>> calls = Message.of("assistant", calls=[ToolCall(id="1", name="get_order", arguments={"id": 7})])
    >>> answers = Message(role="tool", parts=(ToolCallResponse(id="1", response="shipped"),))
    >>> view = View.of(Trace.of(Run(id="run", messages=(asked, calls, answers))), turn=0)
    >>> view.called("get_order", with_={"id": {"from": "user"}}), view.reply
    (True, '')
    """

    trace: Trace
    turn: int | None
    seen: int
    agent: str | None = None

    @classmethod
    def of(cls, trace: Trace, turn: int | None = None, *, agent: str | None = None) -> View:
        """The view at the end of a turn, or of the whole dialogue."""
        return cls(trace=trace, turn=turn, seen=trace.scope(turn).count, agent=agent)

    @cached_property
    def _scope(self) -> Scope:
        return self.trace.scope_of(self.agent, self.turn)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the scope so far."""
        steps = self._scope.steps[: self.seen]
        if self.agent is None or not steps:
            return steps
        first, last = steps[0].number, steps[-1].number
        return tuple(step for step in self.trace.steps_of(self.agent) if first <= step.number <= last)

    @property
    def ended(self) -> bool:
        """True at the last step of the scope."""
        return self.seen >= self._scope.count

    @cached_property
    def dialogue_steps(self) -> tuple[Step, ...]:
        """All steps so far, those of earlier turns too, and of every agent."""
        steps = self._scope.steps[: self.seen]
        return steps if self.turn is None else self.trace.steps[: self._first_step] + steps

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns up to and with the current one (its later steps are still in it: use `steps`)."""
        return self.trace.turns if self.turn is None else self.trace.turns[: self.turn + 1]

    @property
    def user(self) -> str:
        """The user message that opens this turn; all user messages for the closing block."""
        return self.trace.user_text(self.turn, alone=True)

    @property
    def user_text(self) -> str:
        """All user messages so far."""
        return self.trace.user_text(self.turn)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The assistant's messages of the scope so far."""
        return tuple(step.message for step in self.steps)

    @cached_property
    def all_calls(self) -> tuple[CallView, ...]:
        """Every tool call of the scope so far, in order."""
        return self._scope.calls_by(self.seen)

    def calls(
        self,
        name: str | None = None,
        with_: Mapping[str, JSON] | None = None,
        *,
        status: CallStatus | None = None,
        agent: str | None = None,
    ) -> tuple[CallView, ...]:
        """The calls of the scope so far; of one tool, with these arguments among its own, of one status, by one agent,
        where asked for.

        A value of `with_` is a JSON value to equal, or `{"from": "user"}`: it stands in a user message so far
        (`said_by_user`) and is no word of the tool's own name, description and parameters' names; `{"from": "tool"}`:
        in a tool result of an earlier step of the dialogue; `{"from": "system"}`: in the system prompt."""
        found = self._scope.named(name, self.seen) if not with_ else self._matching(name, with_)
        if status is None and agent is None:
            return found
        return tuple(
            call
            for call in found
            if (status is None or call.status == status) and (agent is None or call.agent == agent)
        )

    def called(
        self,
        name: str,
        *,
        with_: Mapping[str, JSON] | None = None,
        before: str | None = None,
        failed: bool = False,
    ) -> bool:
        """Whether a call of the tool ran in the scope so far and did not fail (`failed=True`: or did). With
        `before="reply"`: in a step before the first reply (true from the call's step on, if no reply came before it);
        with `before=TOOL`: in a step before the first call of that tool, whatever became of that one."""
        limit = self.seen
        if before == "reply":
            limit = next((reply.step for reply in self._scope.replies_by(self.seen)), limit)
        elif before is not None:
            limit = next((call.step for call in self.all_calls if call.name == before), limit)
        return any(
            call.step < limit and (call.done or (failed and call.status == "failed"))
            for call in self.calls(name, with_)
        )

    def results(self, name: str | None = None) -> tuple[JSON, ...]:
        """What the tools (or one tool) answered in the scope so far; failures are left out."""
        return tuple(call.result for call in self.calls(name) if call.response is not None and call.done)

    @property
    def failed_calls(self) -> tuple[CallView, ...]:
        return tuple(call for call in self.all_calls if call.failed)

    @property
    def replies(self) -> tuple[str, ...]:
        """The agent's replies in the scope so far: the texts of steps without a tool call."""
        return tuple(reply.text for reply in self._scope.replies_by(self.seen))

    @property
    def reply(self) -> str:
        """The last reply of the scope so far, empty before there is one."""
        replies = self._scope.replies_by(self.seen)
        return replies[-1].text if replies else ""

    def said_by_user(self, value: JSON) -> bool:
        """Whether the value stands in a user message so far: as whole tokens, whatever their case, dates and amounts in
        any usual spelling. It must tell something: a digit or a word of two letters that is no stop word. Of a list or
        an object every value must; truth values and null, which nobody spells out, are passed over."""
        return self._said_by_user(value)

    def told_by_tool(self, value: JSON, before_step: int | None = None) -> bool:
        """Whether the value stands in a tool result of the dialogue so far that is no error (of earlier steps than
        `before_step` of the scope)."""
        return self._told_by_tool(value, before_step)

    def _said_by_user(self, value: JSON, common: Collection[str] = (), listed: Collection[str] = ()) -> bool:
        turn = self.trace.words.user_turn(value, common, listed)
        return turn is not None and (self.turn is None or turn <= self.turn)

    def _told_by_tool(
        self, value: JSON, before_step: int | None, common: Collection[str] = (), listed: Collection[str] = ()
    ) -> bool:
        step = self.trace.words.tool_step(value, common, listed)
        seen = min(self.seen, self._scope.count)
        limit = seen if before_step is None else min(before_step, seen)
        return step is not None and step < self._first_step + limit

    @property
    def _first_step(self) -> int:
        """The number within the dialogue of the scope's first step."""
        return 0 if self.turn is None else self._scope.first

    def _matching(self, name: str | None, wanted: Mapping[str, JSON]) -> tuple[CallView, ...]:
        """Whether a call matches is the same in all views of the scope that see it, and is found out once."""
        try:
            key = (name, canonical_json(wanted))
        except (TypeError, ValueError):  # a value that is no JSON
            return tuple(call for call in self._scope.named(name, self.seen) if self.matches(call, wanted))
        return self._scope.matching(key, self.seen, lambda call: self.matches(call, wanted))

    def matches(self, call: CallView, wanted: Mapping[str, JSON]) -> bool:
        """Whether a call of the scope has these arguments among its own (`calls`)."""
        if not isinstance(call.arguments, Mapping):
            return False
        for key, value in wanted.items():
            if key not in call.arguments:
                return False
            argument = call.arguments[key]
            if isinstance(value, Mapping) and set(value) == {"from"}:
                if not self._came_from(str(value["from"]), call, key):
                    return False
            elif not same_json(argument, value):
                return False
        return True

    def _came_from(self, source: str, call: CallView, key: str) -> bool:
        """Whether an argument of a call stands in what the user, a tool or the system prompt said before it, in other
        words than the tool's own."""
        assert isinstance(call.arguments, Mapping)
        value, (common, listed) = call.arguments[key], own_words(call, key)
        if source == "user":
            return self._said_by_user(value, common, listed)
        if source == "tool":
            return self._told_by_tool(value, call.step, common, listed)
        return source == "system" and stands_in(value, self.trace.system, common, listed)


__all__ = ["CallView", "View", "as_text", "occurs"]
