"""A finding: one thing that is wrong with a checklist, of one item or of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cm2_agent.types.check_specs import (
    AtMost,
    Called,
    NeverCalled,
    NoToolError,
    OnlyCalled,
    Parsed,
    ReplyMatches,
    ReplyStates,
    compile_pattern,
)
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON

Severity = Literal["error", "warning", "note"]
MOST_NAMED = 5
"""Items that a finding on several names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong, and what to do about it.

    `code` names the kind of finding, `item` is None where it concerns the checklist. An `error` fails `cm2 lint`: the
    checklist pays for what was not done, or an item can never be decided otherwise."""

    severity: Severity
    code: str
    message: str
    item: str | None = None

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)


def written_findings(
    checklist: Checklist, parsed: Mapping[str, Parsed], tools: Sequence[str] | None = None
) -> Iterator[Finding]:
    """What the items themselves show. `tools` are the names of all tools, None where they are not known.

    >>> from cm2_agent import Checklist, Item
    >>> from cm2_agent.rewards.linting.finding import written_findings
    >>> from cm2_agent.rewards.linting.probe import parsed_checks
    >>> loose = Checklist(Item("says", check={"reply_matches": ".*"}), name="loose")
    >>> [finding.code for finding in written_findings(loose, parsed_checks(loose))]
    ['cannot fail']
    """
    for item in checklist:
        check = parsed.get(item.id)
        if isinstance(check, ReplyMatches) and compile_pattern(check.reply_matches).search(""):
            yield _of(
                item.id, "error", "cannot fail", f"the pattern {check.reply_matches!r} matches every text; narrow it"
            )
        if isinstance(check, Called) and check.failed == "allowed":
            yield _of(
                item.id,
                "warning",
                "failed call",
                f"a call of {check.called} that fails satisfies it; drop `failed: allowed` where the result matters",
            )
        if item.otherwise == "paid":
            yield _of(
                item.id,
                "warning",
                "paid by inaction",
                "an agent that brings it about that the item does not apply is paid; `otherwise: unpaid`, with `any_of`"
                " for the other right way",
            )
        if check is not None and tools is not None:
            yield from _unknown(item.id, check, tools)
    yield from _own_words(checklist, parsed)


def _own_words(checklist: Checklist, parsed: Mapping[str, Parsed]) -> Iterator[Finding]:
    """Questions whose evidence may stand in the reply, with no check beside them that reads it: who writes that all was
    done is quoted for it, as rightly as any other quote."""
    told = {
        item.turn
        for item in checklist
        if isinstance(parsed.get(item.id), ReplyStates | ReplyMatches) or callable(item.check)  # a function may read it
    }
    items = [
        item.id
        for item in checklist
        if item.is_judged
        and item.kind != "avoid"
        and item.focus_on in (None, "assistant.reply")
        and told.isdisjoint({item.turn, "each", "trace"})
    ]
    if items:
        names = ", ".join(items[:MOST_NAMED]) + (f" and {len(items) - MOST_NAMED} more" if items[MOST_NAMED:] else "")
        yield Finding(
            severity="note",
            code="own words",
            message=f"{names}: the agent's own claim may be the evidence; let `focus_on` name tool.content or"
            " assistant.tool_calls where it shows there, and pay beside it a check of what the reply states"
            " (`reply_states`)",
        )


def _unknown(item: str, check: Parsed, tools: Sequence[str]) -> Iterator[Finding]:
    """Tools that do not exist: a check that waits for one can never be true, one that forbids it never false."""
    if isinstance(check, Called):
        wanted, forbids = [check.called], False
    elif isinstance(check, NeverCalled):
        wanted, forbids = _names(check.never_called), True
    elif isinstance(check, OnlyCalled):
        wanted, forbids = list(check.among), True
    elif isinstance(check, NoToolError) and check.no_tool_error is not True:
        wanted, forbids = _names(check.no_tool_error), True
    elif isinstance(check, AtMost) and isinstance(check.at_most, dict):
        wanted, forbids = list(check.at_most), True
    else:
        return
    lost = [name for name in wanted if name not in tools]
    if lost and (not forbids or len(lost) == len(wanted)):
        code = "cannot fail" if forbids else "cannot pass"
        names = ", ".join(lost)
        yield _of(item, "error", code, f"no tool is called {names}; expected of {', '.join(tools) or 'none'}")


def _names(tools: str | list[str] | Literal[True]) -> list[str]:
    return [tools] if isinstance(tools, str) else [] if tools is True else list(tools)


def _of(item: str, severity: Severity, code: str, message: str) -> Finding:
    return Finding(severity=severity, code=code, message=message, item=item)


__all__ = ["Finding", "Severity", "written_findings"]
