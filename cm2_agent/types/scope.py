"""Scope: what all views of a turn, or of a whole dialogue, share."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolCallResponse, ToolSpec
from cm2_agent.types.tool_content import content_text
from cm2_agent.types.tool_use import CallStatus

if TYPE_CHECKING:
    from cm2_agent.types.trace import Step


@dataclass(frozen=True, kw_only=True)
class CallView:
    """One tool call seen in a view.

    `arguments` are those that ran, where a person or a middleware changed the model's. `step` is the 0-based step
    within the scope at which it was made. `status` says what became of it: `invalid` (it could not be parsed, its
    arguments are no object, or no tool has its name), `not_run` (nothing was executed to its end, as where the run
    ended first or a person refused the call), `failed`, `answered` (whether it failed is unknown) or `ok`. `error` is
    what a tool raised that never answered: it ended the run. `agent` is the one that made the call, where there are
    several; `tool` is the tool as the model saw it, where that was recorded."""

    name: str
    arguments: JSON
    step: int
    response: ToolCallResponse | None
    status: CallStatus
    error: str | None = None
    agent: str | None = None
    tool: ToolSpec | None = field(default=None, repr=False, compare=False)

    @property
    def result(self) -> JSON:
        """What the tool answered, None where nothing came back. Of content blocks, as MCP servers answer, their text;
        `response` has the blocks."""
        return None if self.response is None else content_text(self.response.response)

    @property
    def failed(self) -> bool:
        """True where the answer is an error, and where the tool raised."""
        return self.status == "failed" or (self.response is not None and self.response.error)

    @property
    def done(self) -> bool:
        """True where the call ran and is not known to have failed."""
        return self.status in ("ok", "answered")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A step that speaks to the user. `step` is 0-based within the scope; `agent` says whose it is, where there are
    several."""

    step: int
    text: str
    agent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The steps of a turn or of a dialogue, with their calls and replies in order."""

    steps: tuple[Step, ...]
    calls: tuple[CallView, ...]
    replies: tuple[Reply, ...]

    @classmethod
    def of(cls, steps: Sequence[Step], *, first: int = 0) -> Scope:
        """The scope of these steps, which are counted from `first`."""
        return cls(
            steps=tuple(steps),
            calls=tuple(
                CallView(
                    name=use.call.name,
                    arguments=use.arguments,
                    step=number,
                    response=use.response,
                    status=use.status,
                    error=use.error,
                    agent=step.agent,
                    tool=next((tool for tool in use.tools if tool.name == use.call.name), None),
                )
                for number, step in enumerate(steps, first)
                for use in step.tool_uses
            ),
            replies=tuple(
                Reply(step=number, text=step.message.text, agent=step.agent)
                for number, step in enumerate(steps, first)
                if step.is_reply
            ),
        )

    @cached_property
    def count(self) -> int:
        """The number of steps."""
        return len(self.steps)

    @cached_property
    def first(self) -> int:
        """The number within the dialogue of the first step."""
        return self.steps[0].number if self.steps else 0

    @cached_property
    def _agents(self) -> dict[str, Scope]:
        return {}

    def of_agent(self, agent: str | None) -> Scope:
        """The scope with the calls and replies of one agent alone (None: of all). It has the same steps, so that they
        are counted alike."""
        if agent is None:
            return self
        if agent not in self._agents:
            self._agents[agent] = replace(
                self,
                calls=tuple(call for call in self.calls if call.agent == agent),
                replies=tuple(reply for reply in self.replies if reply.agent == agent),
            )
        return self._agents[agent]

    def calls_by(self, seen: int) -> tuple[CallView, ...]:
        """The calls of the first `seen` steps."""
        return self.calls[: bisect_left(self.calls, seen, key=lambda call: call.step)]

    def named(self, name: str | None, seen: int) -> tuple[CallView, ...]:
        """Those of one tool."""
        calls = self.calls_by(seen)
        return calls if name is None else tuple(call for call in calls if call.name == name)

    def matching(
        self, key: tuple[str | None, str], seen: int, matches: Callable[[CallView], bool]
    ) -> tuple[CallView, ...]:
        """The calls of the tool `key[0]` in the first `seen` steps that match what the key stands for. Each call is
        asked about once."""
        asked, found = self._asked.get(key, (0, ()))
        calls = self.calls_by(seen)
        if asked < len(calls):
            new = tuple(call for call in calls[asked:] if key[0] in (None, call.name) and matches(call))
            found = (*found, *new)
            self._asked[key] = (len(calls), found)
        return found[: bisect_left(found, seen, key=lambda call: call.step)]

    @cached_property
    def _asked(self) -> dict[tuple[str | None, str], tuple[int, tuple[CallView, ...]]]:
        """For what was looked for, how many calls were asked about and which of them match."""
        return {}

    def replies_by(self, seen: int) -> tuple[Reply, ...]:
        return self.replies[: bisect_left(self.replies, seen, key=lambda reply: reply.step)]


__all__ = ["CallView", "Reply", "Scope"]
