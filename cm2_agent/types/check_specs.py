"""Checks written as data, such as `{called: get_order}`: their keys and values; rewards/scoring/checks.py runs them.

They are parsed when a checklist is read, so that a wrong one is refused then and not at the first score.

| check | true when |
|---|---|
| `{called: TOOL, with: {ARG: VALUE}, before: reply}` | a call of the tool ran in the scope so far and did not fail; `with`, `before`: see `View.called` |
| `{called: TOOL, failed: allowed}` | one ran, whether it failed or not |
| `{called: TOOL, succeeded: true}` | one is known to have succeeded: NULL where a recording does not tell of failures |
| `{never_called: TOOL}` or a list | the agent tried to call none of the tools in the whole scope, whatever would have come of it |
| `{only_called: [{called: TOOL, with: {…}}], among: [TOOL]}` | in the whole scope, a call of a tool in `among` that was not answered by an error is a listed one |
| `{at_most: {TOOL: N}}` or `{at_most: N}` | each tool was tried at most N times in the whole scope; a bare N bounds all calls together |
| `{no_tool_error: true}`, a TOOL or a list | no call (of these tools) in the whole scope came back as an error |
| `{replied: true}` | the agent replied: a step with text and no tool call |
| `{reply_states: {from: {tool: TOOL, path: KEY}}}` | a reply of the scope so far states the value that the tool gave, in a usual spelling, and no other of its kind |
| `{reply_matches: PATTERN}` | a reply of the scope so far holds a match of the RE2 pattern that it does not deny (linear time; `(?i)` ignores case) |
| `{user_matches: PATTERN}` | a user message of the scope so far holds a match of the RE2 pattern |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cm2_agent.errors import ChecklistError
from cm2_agent.types.json_values import JSON

ToolName: TypeAlias = Annotated[str, Field(min_length=1, strict=True)]
Count: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
SOURCES = ("user", "tool", "system")
"""Where an argument may be asked to come from."""


class CheckData(BaseModel):
    """What all checks share: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Called(CheckData):
    called: ToolName
    """The tool."""
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments that the call must have, others are free; `{from: user}`: any value that stands in a user message so
    far, `{from: tool}` in an earlier tool result, `{from: system}` in the system prompt: whole tokens, one of which has
    a digit or two letters and is no word of the tool's own description."""
    before: ToolName | None = None
    """Another tool, or `reply`: the call comes before its first call, or before the first reply."""
    succeeded: Literal[True] | None = None
    """The call must be known to have succeeded; without it, an answer that may have been an error is enough. Not
    together with `before`."""
    failed: Literal["allowed"] | None = None
    """A call that ran and failed counts too. One that never ran does not."""

    @field_validator("with_")
    @classmethod
    def _sources(cls, wanted: dict[str, Any]) -> dict[str, Any]:
        return _with_sources(wanted)

    @model_validator(mode="after")
    def _possible(self) -> Called:
        if self.succeeded and self.before is not None:
            raise ValueError("succeeded and before do not go together; make two items")
        if self.succeeded and self.failed:
            raise ValueError("succeeded: true and failed: allowed contradict each other; drop one")
        if self.before == self.called and not self.with_:
            raise ValueError(f"{self.called} before its own first call can never be true; name another tool, or reply")
        return self


def _with_sources(wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted arguments. Raises ValueError where one is to come from an unknown source."""
    for name, value in wanted.items():
        if isinstance(value, Mapping) and set(value) == {"from"} and value["from"] not in SOURCES:
            raise ValueError(
                f"{name}: from is {value['from']!r}; expected user (it occurs in a user message so far), tool (in"
                " a tool result of an earlier step) or system (in the system prompt)"
            )
    return wanted


class Listed(CheckData):
    """One call that `only_called` allows."""

    called: ToolName
    """The tool."""
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments that the call must have; others are free."""


class OnlyCalled(CheckData):
    only_called: list[Listed]
    """The calls that are allowed."""
    among: Annotated[list[ToolName], Field(min_length=1)]
    """The tools that the rule is about; calls of others are free."""


class NeverCalled(CheckData):
    never_called: ToolName | Annotated[list[ToolName], Field(min_length=1)]
    """The tool or tools."""


class AtMost(CheckData):
    at_most: Count | Annotated[dict[ToolName, Count], Field(min_length=1)]
    """A bound for all calls together, or one for each tool."""


class NoToolError(CheckData):
    no_tool_error: Literal[True] | ToolName | Annotated[list[ToolName], Field(min_length=1)]
    """`true` for every tool, or the tool or tools."""

    @field_validator("no_tool_error", mode="before")
    @classmethod
    def _true_only(cls, value: Any) -> Any:
        if value is not True and not isinstance(value, str | list | tuple):
            raise ValueError("expected true, a tool's name or a list of names")
        return list(value) if isinstance(value, tuple) else value


class Replied(CheckData):
    replied: Literal[True]
    """Nothing else can be asked."""

    @field_validator("replied", mode="before")
    @classmethod
    def _true_only(cls, value: Any) -> Any:
        if value is not True:
            raise ValueError("expected true")
        return value


class ToolValue(CheckData):
    """A value that a tool gave: of its latest successful call before the reply, in the whole dialogue."""

    tool: ToolName
    """The tool."""
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Arguments that the call must have; others are free."""
    path: Annotated[str, Field(min_length=1, strict=True)] | None = None
    """Keys and indices into the result as JSON, with dots between them: `order.items.0.price`; `*` for all of a list.
    Left out: the whole result. Of several values each must be stated."""
    pattern: Annotated[str, Field(min_length=1, strict=True)] | None = None
    """An RE2 pattern that finds the value in the text there: its group, else its whole match."""

    @field_validator("with_")
    @classmethod
    def _sources(cls, wanted: dict[str, Any]) -> dict[str, Any]:
        return _with_sources(wanted)

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None and compile_pattern(pattern).groups > 1:
            raise ValueError(f"the pattern {pattern!r} has several groups; expected one, which is the value")
        return pattern


class Statement(CheckData):
    """What a reply must state."""

    from_: ToolValue = Field(alias="from")
    """Where the value comes from."""


class ReplyStates(CheckData):
    reply_states: Statement
    """The value, which must stand in a reply after the call: not denied, asked or supposed, and beside no other value
    of its kind that neither the user nor a tool named."""


class ReplyMatches(CheckData):
    reply_matches: Annotated[str, Field(min_length=1, strict=True)]
    """An RE2 pattern, searched for anywhere in a reply."""
    negated: Literal["allowed", "refused"] | None = None
    """Whether a match that the reply denies counts ("it does not arrive on …"). Left out: `refused`, but `allowed` for
    an `avoid` item, whose match is the violation."""

    @field_validator("reply_matches")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        compile_pattern(pattern)
        return pattern


class UserMatches(CheckData):
    user_matches: Annotated[str, Field(min_length=1, strict=True)]
    """An RE2 pattern, searched for anywhere in a user message. The agent has no hand in it."""

    @field_validator("user_matches")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        compile_pattern(pattern)
        return pattern


Parsed: TypeAlias = (
    Called | OnlyCalled | NeverCalled | AtMost | NoToolError | Replied | ReplyStates | ReplyMatches | UserMatches
)
FORMS: dict[str, type[Parsed]] = {
    "called": Called,
    "only_called": OnlyCalled,
    "never_called": NeverCalled,
    "at_most": AtMost,
    "no_tool_error": NoToolError,
    "replied": Replied,
    "reply_states": ReplyStates,
    "reply_matches": ReplyMatches,
    "user_matches": UserMatches,
}


def parse_check(data: Mapping[str, JSON]) -> Parsed:
    """Read a check written as data. Raises ChecklistError: an unknown check or key (with those allowed), a value of the
    wrong type, an impossible check, a pattern that RE2 does not read."""
    names = [name for name in FORMS if name in data]
    if len(names) != 1:
        what = "none of the known checks" if not names else f"several checks ({', '.join(names)})"
        raise ChecklistError(f"the check {dict(data)!r} names {what}; give exactly one of {', '.join(FORMS)}")
    form = FORMS[names[0]]
    try:
        return form.model_validate(dict(data))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        allowed = ", ".join(spec.alias or name for name, spec in form.model_fields.items())
        if detail["type"] == "extra_forbidden":
            raise ChecklistError(
                f"the check {names[0]} has an unknown key {detail['loc'][-1]!r}; allowed: {allowed}"
            ) from error
        place = ".".join(str(part) for part in detail["loc"]) or names[0]
        message = str(detail["msg"]).removeprefix("Value error, ")
        raise ChecklistError(f"the check {names[0]}: {place}: {message} (given {data.get(names[0])!r})") from error


def compile_pattern(pattern: str) -> Any:
    """The compiled RE2 pattern (a search takes time linear in the text). Raises ValueError where RE2 does not read
    it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            f"the pattern {pattern!r} is not RE2 syntax: {text}; look-around and back-references do not exist there"
            " (they are not linear)"
        ) from error
