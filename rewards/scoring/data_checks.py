"""Checks written as data (`{called: get_order}`), each of which looks through a scope once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from cm2_agent.types.check_specs import (
    AtMost,
    Called,
    NeverCalled,
    NoToolError,
    OnlyCalled,
    Parsed,
    Replied,
    ReplyStates,
    UserMatches,
    compile_pattern,
)
from cm2_agent.types.dialogue_words import parsed
from cm2_agent.types.empty_answers import is_not_there
from cm2_agent.types.scope import CallView
from cm2_agent.types.tool_use import CallStatus
from cm2_agent.types.view import View

from .check_kinds import DataCheck, FailureUnknown, LastingCheck
from .reply_checks import ReplyMatchesCheck, ReplyStatesCheck, replies_so_far, utf8


class CalledCheck(LastingCheck):
    """What is asked for counts where it ran and did not fail; what is forbidden, and the call that it must come before,
    where it was tried."""

    def __init__(self, data: Called, *, forbidden: bool = False) -> None:
        self._name, self._wanted, self._before = data.called, data.with_, data.before
        self._known = data.succeeded is True
        done: tuple[CallStatus, ...] = ("ok", "answered", "failed") if data.failed else ("ok", "answered")
        self._statuses = frozenset(get_args(CallStatus) if forbidden and not self._known else done)

    def first_step(self, view: View) -> int | None:
        limit = self._limit(view)
        unknown = False
        for call in view.all_calls:
            if call.step >= limit:
                break
            if (
                call.name == self._name
                and call.status in self._statuses
                and (not self._wanted or view.matches(call, self._wanted))
            ):
                if self._known and is_not_there(parsed(call.result)):
                    continue
                if not self._known or call.status == "ok":
                    return call.step
                unknown = True
        if unknown:
            raise FailureUnknown(self._name)
        return None

    def _limit(self, view: View) -> int:
        """The step from which on a call comes too late."""
        if self._before == "reply":
            return next((reply.step for reply in replies_so_far(view)), view.seen)
        if self._before is not None:
            return next((call.step for call in view.all_calls if call.name == self._before), view.seen)
        return view.seen


class RepliedCheck(LastingCheck):
    def first_step(self, view: View) -> int | None:
        return next((reply.step for reply in replies_so_far(view)), None)


class UserMatchesCheck(LastingCheck):
    def __init__(self, data: UserMatches) -> None:
        self._pattern = compile_pattern(data.user_matches)

    def matches(self, text: str) -> bool:
        """Whether a user's message of this text is one."""
        return self._pattern.search(utf8(text)) is not None

    def first_step(self, view: View) -> int | None:
        """The first step of the turn that such a message opens."""
        turns = view.trace.turns if view.turn is None else view.trace.turns[view.turn : view.turn + 1]
        start = 0
        for turn in turns:
            if start >= view.seen:
                break
            if any(self.matches(message.text) for message in turn.user):
                return start
            start += len(turn.steps)
        return None


class NeverCalledCheck(DataCheck):
    """What is forbidden counts where it was tried: a call that failed, never ran or could not be read was asked for."""

    def __init__(self, data: NeverCalled) -> None:
        self._tools = _names(data.never_called)

    def __call__(self, view: View) -> bool:
        return all(call.name not in self._tools for call in view.all_calls)


class AtMostCheck(DataCheck):
    """Every call counts that was tried, so that none is made cheaper by failing."""

    def __init__(self, data: AtMost) -> None:
        self._limits = data.at_most

    def __call__(self, view: View) -> bool:
        calls = view.all_calls
        if isinstance(self._limits, int):
            return len(calls) <= self._limits
        return all(sum(call.name == name for call in calls) <= most for name, most in self._limits.items())


class NoToolErrorCheck(DataCheck):
    def __init__(self, data: NoToolError) -> None:
        self._tools = None if data.no_tool_error is True else _names(data.no_tool_error)

    def __call__(self, view: View) -> bool:
        calls = [call for call in view.all_calls if self._tools is None or call.name in self._tools]
        if any(call.failed or call.status == "invalid" for call in calls):
            return False
        unknown = next((call for call in calls if call.status == "answered"), None)
        if unknown is not None:
            raise FailureUnknown(unknown.name)
        return True


class OnlyCalledCheck(DataCheck):
    """Every call whose answer is not marked as an error is matched to a listed one of its own (the largest matching, by
    augmenting paths: a call may fit several). That an answer reads like an error excuses none: its words may be the
    agent's own."""

    def __init__(self, data: OnlyCalled) -> None:
        self._listed, self._among = data.only_called, frozenset(data.among)

    def __call__(self, view: View) -> bool:
        done = [
            call
            for call in view.all_calls
            if call.name in self._among and call.response is not None and not call.response.error
        ]
        if self._all_listed(view, done):
            return True
        unknown = next((call for call in done if call.status == "answered"), None)
        if unknown is not None and self._all_listed(view, [call for call in done if call.status != "answered"]):
            raise FailureUnknown(unknown.name)
        return False

    def _all_listed(self, view: View, done: Sequence[CallView]) -> bool:
        if len(done) > len(self._listed):
            return False
        fits = [
            [
                place
                for place, one in enumerate(self._listed)
                if call.name == one.called and (not one.with_ or view.matches(call, one.with_))
            ]
            for call in done
        ]
        user_of: dict[int, int] = {}  # listed call → the done call that uses it up

        def place(index: int, tried: set[int]) -> bool:
            for listed in fits[index]:
                if listed not in tried:
                    tried.add(listed)
                    if listed not in user_of or place(user_of[listed], tried):
                        user_of[listed] = index
                        return True
            return False

        return all(place(index, set()) for index in range(len(done)))


def data_check(data: Parsed, *, forbidden: bool = False) -> DataCheck:
    """The check that the data describe. `forbidden`: of an `avoid` item, whose yes is the violation."""
    if isinstance(data, Called):
        return CalledCheck(data, forbidden=forbidden)
    if isinstance(data, OnlyCalled):
        return OnlyCalledCheck(data)
    if isinstance(data, NeverCalled):
        return NeverCalledCheck(data)
    if isinstance(data, AtMost):
        return AtMostCheck(data)
    if isinstance(data, NoToolError):
        return NoToolErrorCheck(data)
    if isinstance(data, Replied):
        return RepliedCheck()
    if isinstance(data, UserMatches):
        return UserMatchesCheck(data)
    if isinstance(data, ReplyStates):
        return ReplyStatesCheck(data, forbidden=forbidden)
    return ReplyMatchesCheck(data, forbidden=forbidden)


def _names(tools: str | list[str]) -> frozenset[str]:
    return frozenset([tools] if isinstance(tools, str) else tools)


__all__ = ["DataCheck", "FailureUnknown", "LastingCheck", "UserMatchesCheck", "data_check"]
