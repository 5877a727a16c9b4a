"""Recorded calls as tools: the same call gets the answer that was recorded; apart from simulation, which invents what
was not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from langchain_core.tools import ToolException
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES
from rapidfuzz import fuzz

from cm2_agent.errors import ToolError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import RecordedCall

from .calls import Answer, Call, Journal, reads_only

_NEAREST = 3
_COMPARED = 2000
_SHOWN = 200
"""Characters of a call that an error quotes."""


class ReplayTools:
    """Answers the calls that were recorded, and no others. `tools` say which tools only read; a tool that is not among
    them is judged by its name, as `reads_only` does.

    Where the same call was recorded several times, the answer is that of the recording before which the same writes had
    succeeded as in this dialogue so far (in the same order, else in any); else of the last before which no other writes
    had; else of the first. So within a dialogue the same call gives the same answer until a write succeeds. One object
    serves any number of dialogues: `find` and `answer` keep nothing between calls. It is itself a backend for one
    dialogue: `await tools(name, arguments)`.

    Raises ToolError where two of `tools` bear one name.

    >>> recorded = [RecordedCall(name="get_order", arguments={"id": 7}, result={"status": "shipped"})]
    >>> call = Call(tool=ToolSpec(name="get_order"), arguments={"id": 7.0})
    >>> ReplayTools(recorded).find(call, Journal()).content
    '{"status": "shipped"}'
    """

    def __init__(self, recorded: Sequence[RecordedCall], tools: Sequence[ToolSpec] = ()) -> None:
        self.recorded = tuple(recorded)
        self.tools = unique(tools)
        self.journal = Journal()
        self._places: dict[str, list[int]] = {}
        for place, call in enumerate(self.recorded):
            self._places.setdefault(call.name, []).append(place)
        self._keys: dict[str, _Keyed] = {}

    def find(self, call: Call, journal: Journal) -> Answer | None:
        """The recorded answer, None where no such call was recorded."""
        places = self._keyed(call.tool).places.get(call.key)
        if not places:
            return None
        return replayed(self.recorded[places[0] if len(places) == 1 else self._chosen(places, journal)])

    async def answer(self, call: Call, journal: Journal) -> Answer:
        """The recorded answer. Raises ToolError, naming the nearest recorded calls, where no such call was recorded."""
        found = self.find(call, journal)
        if found is None:
            raise ToolError(self._missing(call))
        return found

    async def __call__(self, name: str, arguments: JSON) -> JSON:
        """Answers by name, as one dialogue. A recorded error raises LangChain's ToolException, which tells the
        agent."""
        call = Call(
            tool=self.tools.get(name) or ToolSpec(name=name),
            arguments=arguments if isinstance(arguments, Mapping) else {},
        )
        answer = await self.answer(call, self.journal)
        self.journal.add(call, answer)
        if answer.error:
            raise ToolException(answer.content)
        return answer.content

    def _keyed(self, tool: ToolSpec) -> _Keyed:
        """The tool's recorded calls by their keys, under the schema that the tool has now."""
        known = self._keys.get(tool.name)
        if known is None or (known.parameters is not tool.parameters and known.parameters != tool.parameters):
            known = _Keyed(parameters=tool.parameters)
            for place in self._places.get(tool.name, ()):
                known.places.setdefault(Call(tool=tool, arguments=self.recorded[place].arguments).key, []).append(place)
            self._keys[tool.name] = known  # whole: other dialogues' threads read it
        return known

    def _chosen(self, places: list[int], journal: Journal) -> int:
        done = journal.writes
        before = {place: [key for other, key in self._writes(journal) if other < place] for place in places}
        counted, all_done = {place: Counter(keys) for place, keys in before.items()}, Counter(done)
        for fits in (
            [place for place in places if before[place] == list(done)],
            [place for place in places if counted[place] == all_done],
            [place for place in reversed(places) if counted[place] <= all_done],
        ):
            if fits:
                return fits[0]
        return places[0]

    def _writes(self, journal: Journal) -> list[tuple[int, str]]:
        """The successful writes of the recording: place and key, under the schemas that this dialogue's tools have."""
        tools = {**self.tools, **{entry.call.tool.name: entry.call.tool for entry in journal.entries}}
        writes: list[tuple[int, str]] = []
        for name in self._places:
            tool = tools.get(name) or ToolSpec(name=name)
            if not reads_only(tool):
                keyed = self._keyed(tool).places.items()
                writes += [
                    (place, key) for key, places in keyed for place in places if self.recorded[place].error is None
                ]
        return sorted(writes)

    def _missing(self, call: Call) -> str:
        asked = _spelled(call)
        places = self._places.get(call.tool.name)
        if places:
            calls = (Call(tool=call.tool, arguments=self.recorded[place].arguments) for place in places)
            spelled = sorted(
                dict.fromkeys(map(_spelled, calls)), key=lambda other: -fuzz.ratio(asked[:_COMPARED], other[:_COMPARED])
            )
            said = (
                f"the call {_cut(asked)} was not recorded; the nearest that were:"
                f" {'; '.join(map(_cut, spelled[:_NEAREST]))}"
            )
        else:
            named = ", ".join(sorted(self._places)) or "none"
            said = (
                f"no call of tool {call.tool.name!r} was recorded, so {_cut(asked)} cannot be replayed; recorded tools:"
                f" {named}"
            )
        return (
            f"{said}. Record the call, let a simulator answer what was not recorded (backend `hybrid`), or let the tool"
            " be called for real (`allow_real`)"
        )


@dataclass(frozen=True, kw_only=True)
class _Keyed:
    """The places of one tool's recorded calls by their keys under one schema."""

    parameters: Mapping[str, JSON]
    places: dict[str, list[int]] = field(default_factory=dict)


def replayed(recorded: RecordedCall) -> Answer:
    """The answer as the agent was told it: text and lists of content blocks as they are, other JSON as LangChain writes
    it."""
    if recorded.error is None:
        return Answer(content=told(recorded.result), backend="replay")
    # an error of several content blocks is recorded as both: what it said, and as what
    blocks = recorded.result if isinstance(recorded.result, list) and recorded.result else None
    return Answer(content=recorded.error if blocks is None else told(blocks), error=True, backend="replay")


def told(result: JSON) -> str | list[JSON]:
    """What a tool message says of a result: LangChain's own rule. Raises ToolError for what is not JSON."""
    if isinstance(result, str) or (isinstance(result, list) and all(map(_is_block, result))):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{type(result).__name__}: {error}"
        raise ToolError(
            f"a recorded result is no JSON ({what}); a recording holds text, content blocks or JSON"
        ) from error


def unique(tools: Iterable[ToolSpec]) -> dict[str, ToolSpec]:
    """The tools by name. Raises ToolError where two bear one."""
    named: dict[str, ToolSpec] = {}
    for tool in tools:
        if tool.name in named:
            raise ToolError(
                f"two tools are named {tool.name!r}; names must be unique, since a call says which it means by nothing"
                " else"
            )
        named[tool.name] = tool
    return named


def _is_block(item: JSON) -> bool:
    return isinstance(item, str) or (isinstance(item, dict) and item.get("type") in TOOL_MESSAGE_BLOCK_TYPES)


def _spelled(call: Call) -> str:
    try:
        return f"{call.tool.name}({json.dumps(call.arguments, ensure_ascii=False, sort_keys=True, default=str)})"
    except (TypeError, ValueError, RecursionError):  # too deep, or no JSON: what the matching made of it
        return call.key


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


__all__ = ["ReplayTools", "replayed", "told", "unique"]
