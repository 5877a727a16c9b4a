"""Users of a dialogue: scripted turns, or a language model that plays a persona."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model

from cm2_agent.errors import TaskError, UserError
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.failures import MalformedReply, RequestFailed
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.providers import language_model
from cm2_agent.llm.untrusted_text import fenced, mark_of
from cm2_agent.llm.usage import Usage
from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.redaction.redacted_run import redacted_message
from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.json_values import canonical_json, content_hash
from cm2_agent.types.messages import Message
from cm2_agent.types.protocols import LastMessage
from cm2_agent.types.task import Persona

_TEMPLATE = (Path(__file__).resolve().parent / "prompts" / "user.md").read_text(encoding="utf-8").strip()
_OPENING = "(The conversation begins. Write your first message to the assistant.)"
_SILENCE = "(The assistant said nothing.)"
_SPECIAL = re.compile(r"<(?=\|)")
_ANSWER_TOKENS = 60


class ScriptedUser:
    """Says the given turns, one after another, whatever the assistant answers.

    >>> import asyncio
    >>> from cm2_agent import Message
    >>> from cm2_agent.graphs import ScriptedUser
    >>> user = ScriptedUser(["Where is order 7?"])
    >>> dialogue = [Message.of("user", "Where is order 7?"), Message.of("assistant", "It was shipped.")]
    >>> asyncio.run(user([])), asyncio.run(user(dialogue))
    ('Where is order 7?', None)
    """

    version = "scripted"

    def __init__(self, turns: Sequence[str]) -> None:
        self.turns = tuple(turns)

    async def __call__(self, messages: Sequence[Message]) -> str | None:
        """The next turn, None after the last."""
        spoken = sum(message.role == "user" for message in messages)
        return self.turns[spoken] if spoken < len(self.turns) else None


class LLMUser:
    """A language model that plays the persona until it says `stop`, which ends the dialogue and is shown to nobody.
    Words beside the signal are the user's last: they are answered first.

    The model sees what the assistant wrote to the user, never its system message, reasoning, tool calls or their
    results. What it writes depends on the dialogue alone, so one object may serve many.

    Args:
        model: A pydantic-ai model or its name, `local:FOLDER`, or a LangChain chat model.
        persona: Who the user is: words, or a Persona.
        seed: Of the model.
        settings: pydantic-ai's, beside temperature 0 and the seed.
        timeout: Seconds of a request.
        retries: Of a request that fails, 0 or more.
        backoff: Seconds before the first retry, about.
        limits: Requests, tokens and dollars at most; may be shared with other models.
        price: Where the published one is not yours.
        stop: What the model writes when the user is done.
        redact: Replaces personal data in what the model is shown, its persona too; it then speaks of the placeholders.

    Raises:
        TaskError: An empty persona or stop signal.
        ModelError: A name that is no model.
        MissingExtra: The model's package is not installed.

    >>> from cm2_agent import Persona
    >>> from cm2_agent.graphs import LLMUser
    >>> user = LLMUser("test", Persona(persona="An impatient man", goal="wants to know where order 7 is"), seed=3)
    >>> user.version.startswith("test:test;prompt=") and user.version.endswith(";seed=3")
    True
    """

    def __init__(
        self,
        model: str | Model | BaseChatModel,
        persona: str | Persona,
        *,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        backoff: float = 0.5,
        limits: RateLimits | None = None,
        price: Price | None = None,
        stop: str = "###STOP###",
        redact: Redactor | None = None,
    ) -> None:
        shown = Persona(persona=persona) if isinstance(persona, str) and persona.strip() else persona
        if not isinstance(shown, Persona):
            raise TaskError(f"a simulated user has the persona {persona!r}; expected words, or a Persona")
        if not stop.strip():
            raise TaskError(
                "the stop signal of a simulated user is empty; expected a word that nobody says, such as ###STOP###"
            )
        self.persona, self.seed, self.stop, self.redact = shown, seed, stop, redact
        self._settings = {"temperature": 0.0, **(settings or {})}
        self._client = LLMClient(
            language_model(model, "user"),
            of="user",
            settings={"seed": seed, **self._settings},
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            limits=limits,
            price=price,
        )
        persona_json = shown.model_dump(mode="json", exclude_defaults=True)
        if redact is not None:
            persona_json = redact.redact_json(persona_json)
        self._instructions = _TEMPLATE.format(
            persona=fenced("persona", persona_json, mark_of(canonical_json(persona_json))), stop=stop, seed=seed
        )

    @property
    def version(self) -> str:
        """Names the model as asked for, the prompt with its stop signal, the settings and the seed; the persona is the
        task's."""
        model = self._client.model
        prompt = content_hash([_TEMPLATE, _OPENING, _SILENCE, self.stop])[:8]
        settings = content_hash(self._settings)[:8]
        redacted = "" if self.redact is None else ";redacted"
        return f"{model.system}:{model.model_name};prompt={prompt};settings={settings}{redacted};seed={self.seed}"

    @property
    def usage(self) -> Usage:
        """Requests, tokens and dollars of this user alone."""
        return self._client.usage

    async def __call__(self, messages: Sequence[Message]) -> str | None:
        """The user's next message, a LastMessage where the stop signal stands beside it; None where the user is done.
        Raises UserError where the model writes nothing or
        fails, BudgetExhausted where it may not be asked."""
        try:
            redact = self.redact
            seen = messages if redact is None else [redacted_message(message, redact) for message in messages]
            words = await self._client.ask(self._flipped(seen), _spoken, answer_tokens=_ANSWER_TOKENS)
        except RequestFailed as error:
            raise UserError(f"the simulated user failed: {error}") from error
        return self._heard_of(words)

    def _heard_of(self, words: str) -> str | None:
        """What the assistant hears of the words: never the stop signal, nor one that was spelled a little otherwise."""
        if self.stop in words:
            said = " ".join(filter(None, map(str.strip, words.split(self.stop))))
            return LastMessage(said) if any(map(str.isalnum, said)) else None
        signal = _letters(self.stop)
        return None if signal and _letters(words) == signal else words

    async def aclose(self) -> None:
        """Close the connections that this event loop's requests left open."""
        await self._client.aclose()

    def _flipped(self, messages: Sequence[Message]) -> list[ModelMessage]:
        """The dialogue as the user's model sees it: it is the one who answers."""
        history: list[ModelMessage] = []
        heard: list[str] | None = None
        for message in messages:
            if message.role == "user":
                history.append(self._request(_OPENING if heard is None else _heard(heard)))
                history.append(ModelResponse(parts=[TextPart(_sendable(message.text))]))
                heard = []
            elif message.role == "assistant" and message.text.strip():
                heard = [*(heard or []), message.text]
        return [*history, self._request(_OPENING if heard is None else _heard(heard))]

    def _request(self, words: str) -> ModelRequest:
        return ModelRequest(parts=[UserPromptPart(content=words)], instructions=self._instructions)


def _heard(words: Sequence[str]) -> str:
    """The assistant's words; what could be a special token of a chat template is broken up."""
    return _SPECIAL.sub("< ", _sendable("\n".join(words))) or _SILENCE


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _sendable(text: str) -> str:
    """The text with a question mark for what UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _spoken(text: str) -> str:
    """What the model says: its thinking is neither heard nor looked through for the stop signal."""
    _, words = split_reasoning(text)
    if not words.strip():
        raise MalformedReply("the user's model said nothing")
    return words.strip()


__all__ = ["LLMUser", "ScriptedUser"]
