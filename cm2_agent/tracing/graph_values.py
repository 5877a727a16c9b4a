"""What a graph was given and what it gave back: kept as JSON, and read for the user's message and the reply where no
list of messages says them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langgraph.types import Command

from cm2_agent.langchain_messages import from_langchain, plain
from cm2_agent.types.json_values import CUT_AT, JSON, canonical_json
from cm2_agent.types.messages import Message, Role

__all__ = ["GraphValue", "Selector", "check_selectors", "read_value", "state_messages", "with_interrupts"]

Selector: TypeAlias = str | Callable[[Any], Any]
"""Where the user's message stands in a graph's input, or the reply in its output: a key, a dotted path of keys, or a
function of the value."""
_MESSAGE_ROLES = frozenset({"user", "human", "assistant", "ai", "system", "developer", "tool", "function"})


@dataclass(frozen=True, slots=True)
class GraphValue:
    """One input or output. `json` is what is kept of it: lists of messages are left out where the dialogue holds them.
    `texts` are the candidates for what was said, by key (`""` for a value that is itself a text or a message);
    `said` is what the selector chose, None where there is no selector."""

    json: JSON = None
    texts: Mapping[str, Message] = field(default_factory=dict)
    said: tuple[Message, ...] | None = None


_NOTHING = GraphValue()


def read_value(
    value: Any,
    role: Role,
    selector: Selector | None = None,
    *,
    whole: bool = False,
    unfound: Callable[[Exception | None], None] | None = None,
) -> GraphValue:
    """Reads a graph's input (`role` user) or output (assistant). `whole`: messages are kept too. Where the selector
    finds nothing, nothing was said, and `unfound` is called, with what the selector's function raised."""
    if value is None:
        return _NOTHING if selector is None else GraphValue(said=())
    if type(value) is dict and not whole and len(value) == 1 and "messages" in value:
        return _NOTHING
    said: tuple[Message, ...] | None = None
    if selector is not None:
        said, error = _said(value, role, selector)
        if not said and unfound is not None and not isinstance(value, Command):
            unfound(error)
    kept = _fields(value) if whole else _without_messages(value)
    empty = kept is None or (isinstance(kept, Mapping) and not kept)
    return GraphValue(None if empty else plain(kept, CUT_AT), _texts(value, role), said)


def _said(value: Any, role: Role, selector: Selector) -> tuple[tuple[Message, ...], Exception | None]:
    if isinstance(value, Command):  # a text that answers an interrupt is the user's, wherever it goes
        return tuple(_texts(value, role).values()), None
    try:
        return tuple(_messages_of(_select(value, selector), role)), None
    except Exception as error:  # the selector's function is the application's
        return (), error


def with_interrupts(value: GraphValue, questions: Sequence[Any]) -> GraphValue:
    """An output with what the run stopped to ask, under `__interrupt__` as LangGraph returns it."""
    asked = plain(list(questions), CUT_AT)
    kept = value.json if isinstance(value.json, dict) else {} if value.json is None else {"value": value.json}
    return dataclasses.replace(value, json={**kept, "__interrupt__": asked})


def check_selectors(input: object, output: object) -> None:
    """Raises TypeError for a selector that is neither text nor a function, ValueError for an empty text."""
    for name, selector in (("input", input), ("output", output)):
        if selector is not None and not isinstance(selector, str) and not callable(selector):
            raise TypeError(
                f"{name} is {selector!r}; expected a key of the graph's {name}, a dotted path, or a function of it"
            )
        if selector == "":
            raise ValueError(f"{name} is empty; expected a key, a dotted path, or a function of the graph's {name}")


def state_messages(state: Any) -> tuple[str, Any]:
    """The key and value of the messages in a graph's state, input or output: those under `messages`, else those of the
    only field that is a list of messages, else the value itself (key `""`)."""
    fields = _mapping(state)
    if fields is None:
        return "", getattr(state, "messages", state)
    if "messages" in fields:
        return "messages", fields["messages"]
    found = [(key, value) for key, value in fields.items() if _is_messages(value)]
    return found[0] if len(found) == 1 else ("", None)


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The fields of a state: a mapping's, a dataclass's or a pydantic model's; None for another value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseMessage | str | list | tuple | type):
        return None
    if dataclasses.is_dataclass(value):
        return {item.name: _field(value, item.name) for item in dataclasses.fields(value)}
    names = getattr(type(value), "model_fields", None)
    return {name: _field(value, name) for name in names} if isinstance(names, Mapping) else None


def _field(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of the application's
        return None


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_message, value))


def _is_message(item: Any) -> bool:
    if isinstance(item, BaseMessage):
        return True
    if isinstance(item, Mapping):
        return item.get("role") in _MESSAGE_ROLES and "content" in item
    return isinstance(item, tuple) and len(item) == 2 and item[0] in _MESSAGE_ROLES


def _fields(value: Any) -> Any:
    if isinstance(value, Command):
        given = {name: getattr(value, name, None) for name in ("resume", "goto", "update")}
        return {name: _fields(item) for name, item in given.items() if item}
    fields = _mapping(value)
    if fields is None:
        return value
    return fields


def _without_messages(value: Any) -> Any:
    """The value without what the dialogue holds."""
    fields = _fields(value)
    if isinstance(fields, Mapping):
        own, _ = state_messages(fields)
        return {
            key: _without_messages(item) if key == "update" and isinstance(value, Command) else item
            for key, item in fields.items()
            if key != own
        }
    return None if isinstance(fields, BaseMessage) or _is_messages(fields) else fields


def _texts(value: Any, role: Role) -> dict[str, Message]:
    kind = HumanMessage if role == "user" else AIMessage
    if isinstance(value, Command):
        value = {"resume": value.resume}
    fields = {"": value} if isinstance(value, str | BaseMessage) else _mapping(value) or {}
    out = {}
    for key, item in fields.items():
        if isinstance(item, str):
            if item.strip():
                out[str(key)] = Message.of(role, item)
        elif isinstance(item, kind):
            out[str(key)] = from_langchain(item)
    return out


def _select(value: Any, selector: Selector) -> Any:
    if callable(selector):
        return selector(value)
    found = _step(value, selector)
    if found is None:
        found = value
        for key in selector.split("."):
            found = _step(found, key)
    return found


def _step(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list | tuple):
        return value[int(key)] if key.lstrip("-").isdigit() and -len(value) <= int(key) < len(value) else None
    return None if isinstance(value, str) else getattr(value, key, None)


def _messages_of(chosen: Any, role: Role) -> list[Message]:
    """What was chosen as messages of the role: of a list of messages, the user's last ones or the assistant's last
    one."""
    if chosen is None:
        return []
    if isinstance(chosen, str):
        return [Message.of(role, chosen)] if chosen.strip() else []
    if isinstance(chosen, Message):
        return [dataclasses.replace(chosen, role=role)]
    if isinstance(chosen, BaseMessage) or _is_message(chosen):
        return [dataclasses.replace(from_langchain(*convert_to_messages([chosen])), role=role)]
    if _is_messages(chosen):
        return _last_of(role, [from_langchain(message) for message in convert_to_messages(list(chosen))])
    if isinstance(chosen, list) and chosen and all(isinstance(block, Mapping) and "type" in block for block in chosen):
        return [dataclasses.replace(from_langchain(HumanMessage(content=chosen)), role=role)]
    return [Message.of(role, canonical_json(plain(chosen)))]


def _last_of(role: Role, messages: Sequence[Message]) -> list[Message]:
    if role == "assistant":
        return [message for message in messages if message.role == "assistant" and not message.tool_calls][-1:]
    out: list[Message] = []
    for message in reversed(messages):
        if message.role == "assistant":
            break
        if message.role == role:
            out.insert(0, message)
    return out
