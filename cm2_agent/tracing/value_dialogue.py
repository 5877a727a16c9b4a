"""The dialogue of a run whose graph keeps no messages: what the user said and what the reply is, by the graph's input
and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.tracing.graph_values import GraphValue
from cm2_agent.tracing.span_records import ChatRecord, RootRecord, ToolRecord
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse

_USER_KEYS = ("question", "query", "input", "user_input", "message")
_REPLY_KEYS = ("answer", "response", "reply", "output")
"""Which text is the user's, and which the reply, where there are several: the first of these keys."""


class ValueDialogue:
    """The user's message, the steps that called tools, and the reply. Other model calls are off the main line: their
    prompts are the application's own, and nobody was shown their answers. The call whose whole text became the reply
    wrote it."""

    def __init__(
        self,
        root: RootRecord,
        user: Sequence[Message],
        reply: Sequence[Message],
        chats: list[ChatRecord],
        tools: list[ToolRecord],
    ) -> None:
        shown = root.input_messages or ()
        self.history = tuple(seen.message for seen in shown[: _after_last_assistant(shown)])
        """What the graph was given of the dialogue before the user's message."""
        self.messages: list[Message] = list(user)
        self.written: dict[int, int] = {}
        responses = _Responses(chats, tools)
        for chat in chats:
            if chat.output is not None and chat.output.message.tool_calls:
                answers = responses.of(chat.output.message.tool_calls)
                if answers:
                    self._write(chat, chat.output.message)
                    self.messages.extend(answers)
        for message in reply:
            writer = _writer(message, chats)
            if writer is None:
                self.messages.append(message)
            else:
                self._write(*writer)

    def result(self) -> tuple[list[Message], dict[int, int]]:
        """The messages, and for the identity of each call's record the index of the message it wrote."""
        return self.messages, self.written

    def _write(self, chat: ChatRecord, message: Message) -> None:
        self.written[id(chat)] = len(self.messages)
        self.messages.append(message)


def value_dialogue(root: RootRecord, chats: list[ChatRecord], tools: list[ToolRecord]) -> ValueDialogue | None:
    """The dialogue by the root's input and output, where selectors were given for them or no list of messages says what
    the user asked and what the answer was; None for every other run, and for a bare model or tool."""
    if root.input is None:
        return None
    given, got = root.input, root.output or GraphValue()
    asked = _new_user_messages(root.input_messages or ())
    user = _first(given.texts, _USER_KEYS)
    changed = {key: message for key, message in got.texts.items() if not _same(message, given.texts.get(key))}
    reply = () if root.interrupted else _first(changed, _REPLY_KEYS)
    if given.said is not None or got.said is not None:
        if given.said is None:
            user = asked or user
        if got.said is None:
            reply = reply or _last_reply(root.final_messages or ())
        return ValueDialogue(
            root, user if given.said is None else given.said, reply if got.said is None else got.said, chats, tools
        )
    has_state = root.log.wrote(root.run_id) or (root.final_messages is not None and "" not in got.texts)
    if asked:
        return ValueDialogue(root, asked, reply, chats, tools) if reply and not has_state else None
    if (user and reply) or not (root.input_messages or has_state):
        return ValueDialogue(root, user, reply, chats, tools)
    return None


def _first(texts: Mapping[str, Message], keys: Sequence[str]) -> tuple[Message, ...]:
    """The only text, or among several the one under the first of the keys."""
    if len(texts) == 1:
        return tuple(texts.values())
    return tuple(texts[key] for key in keys if key in texts)[:1]


def _same(message: Message, earlier: Message | None) -> bool:
    return earlier is not None and message.text == earlier.text


def _after_last_assistant(shown: Sequence[SeenMessage]) -> int:
    return next((i + 1 for i in range(len(shown) - 1, -1, -1) if shown[i].message.role == "assistant"), 0)


def _new_user_messages(shown: Sequence[SeenMessage]) -> tuple[Message, ...]:
    return tuple(seen.message for seen in shown[_after_last_assistant(shown) :] if seen.message.role == "user")


def _last_reply(shown: Sequence[SeenMessage]) -> tuple[Message, ...]:
    replies = [seen.message for seen in shown if seen.message.role == "assistant" and not seen.message.tool_calls]
    return tuple(replies[-1:])


def _writer(reply: Message, chats: Sequence[ChatRecord]) -> tuple[ChatRecord, Message] | None:
    """The last call that answered with exactly this text, and its message."""
    text = reply.text.strip()
    for chat in reversed(chats):
        output = None if chat.output is None else chat.output.message
        if text and output is not None and not output.tool_calls and output.text.strip() == text:
            return chat, output
    return None


class _Responses:
    """What was answered to tool calls, as a later prompt shows it, or as the tool's execution was recorded: in order
    for an id that comes again."""

    def __init__(self, chats: Sequence[ChatRecord], tools: Sequence[ToolRecord]) -> None:
        self._found: dict[str, list[Message]] = {}
        for tool in tools:
            if tool.call_id is not None and not tool.interrupted:
                response = ToolCallResponse(
                    id=tool.call_id,
                    response=tool.error if tool.result is None and tool.error is not None else tool.result,
                    error=tool.error is not None,
                )
                message = Message(role="tool", parts=(response,), name=tool.name)
                self._found.setdefault(tool.call_id, []).append(message)
        shown: dict[str, list[Message]] = {}
        for seen in {id(seen): seen for chat in chats for seen in chat.input}.values():
            for part in seen.message.responses:
                if part.id is not None and part.id not in self._found:
                    shown.setdefault(part.id, []).append(Message(role="tool", parts=(part,), name=seen.message.name))
        self._found |= shown

    def of(self, calls: Sequence[ToolCall]) -> list[Message]:
        """The answers to one message's calls; each is handed out once."""
        return [self._found[call.id].pop(0) for call in calls if call.id is not None and self._found.get(call.id)]
