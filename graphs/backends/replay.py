"""Recorded calls as tools: the same call gets the answer that was recorded."""

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
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.text import shorten
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest, reads_only

from ..crashes import note_reproduced

_NEAREST = 3
_COMPARED = 2000
_SHOWN = 200
"""Characters of a call that an error quotes."""


class Replay:
    """Answers tool calls from recordings: those of the dialogue's own task (`task.recorded`), and `recording` beside
    them (what `load_recording` read, say). One object serves a whole run. A call that was not recorded raises
    ToolError, naming the nearest recorded ones, and ends the dialogue: its turn is cut, as by a crash. `Hybrid` asks a
    simulator instead.

    >>> from cm2_agent import RecordedCall, ToolSpec
    >>> from cm2_agent.graphs import CallLog, Replay, ToolRequest
    >>> recorded = [RecordedCall(name="get_order", arguments={"id": 7}, result={"status": "shipped"})]
    >>> request = ToolRequest(tool=ToolSpec(name="get_order"), arguments={"id": 7.0})
    >>> Replay(recorded).find(request, CallLog()).content
    '{"status": "shipped"}'
    """

    name = "replay"

    def __init__(self, recording: Iterable[RecordedCall] = ()) -> None:
        self.recording = tuple(recording)
        self._of_task: dict[tuple[str, int] | None, ReplayTools] = {}

    def find(self, request: ToolRequest, log: CallLog) -> ToolAnswer | None:
        """The recorded answer, None where no such call was recorded."""
        return self.of(request.task).find(request, log)

    async def answer(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        """The recorded answer. Raises ToolError where no such call was recorded."""
        return await self.of(request.task).answer(request, log)

    def of(self, task: Task | None) -> ReplayTools:
        """The recorded calls that answer one task's dialogues, the task's own first. Raises ToolError where the task
        has two tools of one name."""
        key = None if task is None else (task.id, task.version)
        if key not in self._of_task:
            own, tools = ((), ()) if task is None else (task.recorded, task.tools)
            self._of_task[key] = ReplayTools((*own, *self.recording), tools)
        return self._of_task[key]


class ReplayTools:
    """Answers the calls that were recorded, and no others, for dialogues of one task. `tools` say which tools only
    read; a tool that is not among them is judged by its name, as `reads_only` does.

    Where the same call was recorded several times, the answer is that of the recording before which the same writes had
    succeeded as in this dialogue so far (in the same order, else in any); else of the last before which no other writes
    had; else of the first. So within a dialogue the same call gives the same answer until a write succeeds. One object
    serves any number of dialogues: `find` and `answer` keep nothing between calls. It can also be called by
    a tool's name, as one dialogue: `await tools(name, arguments)`.

    Raises ToolError where two of `tools` bear one name.

    >>> from cm2_agent import RecordedCall, ToolSpec
    >>> from cm2_agent.graphs import CallLog, ReplayTools, ToolRequest
    >>> recorded = [RecordedCall(name="get_order", arguments={"id": 7}, result={"status": "shipped"})]
    >>> request = ToolRequest(tool=ToolSpec(name="get_order"), arguments={"id": 7.0})
    >>> ReplayTools(recorded).find(request, CallLog()).content
    '{"status": "shipped"}'
    """

    name = "replay"

    def __init__(self, recorded: Sequence[RecordedCall], tools: Sequence[ToolSpec] = ()) -> None:
        self.recorded = tuple(recorded)
        self.tools = unique(tools)
        self.log = CallLog()
        self._places: dict[str, list[int]] = {}
        for place, call in enumerate(self.recorded):
            self._places.setdefault(call.name, []).append(place)
        self._keys: dict[str, _Keyed] = {}

    def find(self, request: ToolRequest, log: CallLog) -> ToolAnswer | None:
        """The recorded answer, None where no such call was recorded."""
        places = self._keyed(request.tool).places.get(request.key)
        if not places:
            return None
        return replayed(self.recorded[places[0] if len(places) == 1 else self._chosen(places, log)])

    async def answer(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        """The recorded answer. Raises ToolError, naming the nearest recorded calls, where no such call was recorded."""
        found = self.find(request, log)
        if found is None:
            error = ToolError(self._missing(request))
            note_reproduced(error)  # no second call will find it either
            raise error
        return found

    async def __call__(self, name: str, arguments: JSON) -> JSON:
        """One call by the tool's name, in one dialogue. A recorded error raises LangChain's ToolException, which
        the agent sees."""
        request = ToolRequest(
            tool=self.tools.get(name) or ToolSpec(name=name),
            arguments=arguments if isinstance(arguments, Mapping) else {},
        )
        answer = await self.answer(request, self.log)
        self.log.add(request, answer)
        if answer.error:
            raise ToolException(answer.content)
        return answer.content

    def _keyed(self, tool: ToolSpec) -> _Keyed:
        """The tool's recorded calls by their keys, under the schema that the tool has now."""
        known = self._keys.get(tool.name)
        if known is None or (known.parameters is not tool.parameters and known.parameters != tool.parameters):
            known = _Keyed(parameters=tool.parameters)
            for place in self._places.get(tool.name, ()):
                known.places.setdefault(
                    ToolRequest(tool=tool, arguments=self.recorded[place].arguments).key, []
                ).append(place)
            self._keys[tool.name] = known  # whole: other dialogues' threads read it
        return known

    def _chosen(self, places: list[int], log: CallLog) -> int:
        done = log.writes
        before = {place: [key for other, key in self._writes(log) if other < place] for place in places}
        counted, all_done = {place: Counter(keys) for place, keys in before.items()}, Counter(done)
        for fits in (
            [place for place in places if before[place] == list(done)],
            [place for place in places if counted[place] == all_done],
            [place for place in reversed(places) if counted[place] <= all_done],
        ):
            if fits:
                return fits[0]
        return places[0]

    def _writes(self, log: CallLog) -> list[tuple[int, str]]:
        """The successful writes of the recording: place and key, under the schemas that this dialogue's tools have."""
        tools = {**self.tools, **{entry.request.tool.name: entry.request.tool for entry in log.entries}}
        writes: list[tuple[int, str]] = []
        for name in self._places:
            tool = tools.get(name) or ToolSpec(name=name)
            if not reads_only(tool):
                keyed = self._keyed(tool).places.items()
                writes += [
                    (place, key) for key, places in keyed for place in places if self.recorded[place].error is None
                ]
        return sorted(writes)

    def _missing(self, request: ToolRequest) -> str:
        asked = _spelled(request)
        shown = shorten(asked, _SHOWN)
        places = self._places.get(request.tool.name)
        if places:
            calls = (ToolRequest(tool=request.tool, arguments=self.recorded[place].arguments) for place in places)
            spelled = sorted(
                dict.fromkeys(map(_spelled, calls)), key=lambda other: -fuzz.ratio(asked[:_COMPARED], other[:_COMPARED])
            )
            problem = (
                f"the call {shown} was not recorded; the nearest that were:"
                f" {'; '.join(shorten(call, _SHOWN) for call in spelled[:_NEAREST])}"
            )
        else:
            named = ", ".join(sorted(self._places)) or "none"
            problem = (
                f"no call of tool {request.tool.name!r} was recorded, so {shown} cannot be replayed; recorded"
                f" tools: {named}"
            )
        return (
            f"{problem}. Record the call, let a simulator answer what was not recorded (backend `hybrid`), or let the"
            " tool be called for real (`allow_real`)"
        )


@dataclass(frozen=True, kw_only=True)
class _Keyed:
    """The places of one tool's recorded calls by their keys under one schema."""

    parameters: Mapping[str, JSON]
    places: dict[str, list[int]] = field(default_factory=dict)


def replayed(recorded: RecordedCall) -> ToolAnswer:
    """The answer as the agent read it: text and lists of content blocks as they are, other JSON as LangChain writes
    it."""
    if recorded.error is None:
        return ToolAnswer(content=message_content(recorded.result), backend="replay")
    # an error of several content blocks is recorded as both: what it said, and as what
    blocks = recorded.result if isinstance(recorded.result, list) and recorded.result else None
    return ToolAnswer(
        content=recorded.error if blocks is None else message_content(blocks), error=True, backend="replay"
    )


def message_content(result: JSON) -> str | list[JSON]:
    """What a tool message says of a result: LangChain's own rule. Raises ToolError for what is not JSON."""
    if isinstance(result, str) or (isinstance(result, list) and all(map(_is_block, result))):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"{type(result).__name__}: {error}"
        raise ToolError(f"a tool's result is not JSON ({what}); expected text, content blocks or JSON") from error


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


def _spelled(request: ToolRequest) -> str:
    try:
        return f"{request.tool.name}({json.dumps(request.arguments, ensure_ascii=False, sort_keys=True, default=str)})"
    except (TypeError, ValueError, RecursionError):  # too deep, or no JSON: what the matching made of it
        return request.key


__all__ = ["Replay", "ReplayTools", "message_content", "replayed", "unique"]
