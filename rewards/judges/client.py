"""Asking a judge's model until it answers every item, or cannot.

Whatever goes wrong is a RequestFailure with its cause (docs/method.md §4). `infrastructure`: time-outs, rate limits,
server errors, malformed and incomplete replies. `content`: refusals and transcripts too long for the model, which the
judged text itself can bring about. None is a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic_ai.messages import ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import JudgeError, ModelError
from cm2_agent.llm.client import CHARACTERS_A_TOKEN, LLMClient, reply_text
from cm2_agent.llm.failures import RequestFailure
from cm2_agent.llm.providers import language_model, openai_model
from cm2_agent.llm.reply_modes import Schema

from .prompt import INSTRUCTIONS, Window, tail
from .reply import SCHEMA, ItemAnswer, read

TOKENS_AN_ANSWER = 150
"""An estimate for limits and splitting: what is spent is counted from the replies."""
_VERDICTS = Schema(name="verdicts", body=SCHEMA)


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """An answer, and the model that returned it."""

    answer: ItemAnswer
    served: str


class JudgeClient(LLMClient):
    """A client that asks about items. What a reply leaves out is asked again, alone."""

    def __init__(self, model: Model, **options: Any) -> None:
        """`options` are those of LLMClient."""
        super().__init__(model, of="judge", **options)

    async def verdicts(
        self,
        window: Window,
        items: Mapping[str, str],
        found: dict[str, ServedAnswer | RequestFailure],
        *,
        note: str = "",
        re_ask: bool = False,
    ) -> None:
        """Put an answer or a failure for each item, given as id → line, into `found` as it comes. Raises
        BudgetExhausted where the budget does not allow a call: what was answered by then is in `found`."""
        waiting = dict(items)

        async def attempt(again: bool) -> RequestFailure | None:
            response = await self._request(window, waiting, note, re_ask or again)
            answers = read(reply_text(response), waiting, window.text)
            served = response.model_name or self.model.model_name
            for name, answer in answers.items():
                found[name] = ServedAnswer(answer=answer, served=served)
                del waiting[name]
            left_out = RequestFailure(cause="infrastructure", explanation="the reply left the item out", reply=True)
            return left_out if waiting else None

        failure = await self.attempts(attempt)
        if failure is not None:
            found.update(dict.fromkeys(waiting, failure))

    def estimate(self, window: Window, items: Mapping[str, str]) -> int:
        """Tokens of a call, in and out, roughly."""
        return _read_tokens(window, items) + TOKENS_AN_ANSWER * len(items)

    async def _request(self, window: Window, items: Mapping[str, str], note: str, re_ask: bool) -> ModelResponse:
        end = tail(window, list(items.items()), note)
        content: str | list[Any] = f"{window.text}\n{end}"
        if window.images:
            shown = [piece for number, image in enumerate(window.images, 1) for piece in (f"image {number}:", image)]
            content = [window.text, *shown, end]
        message = ModelRequest(parts=[UserPromptPart(content=content)], instructions=INSTRUCTIONS)
        return await self.request(
            [message],
            tokens=_read_tokens(window, items),
            answer_tokens=TOKENS_AN_ANSWER * len(items),
            schema=_VERDICTS,
            re_ask=re_ask,
        )


def judge_model(model: str | Model | BaseChatModel) -> Model:
    """`language_model` for a judge: raises JudgeError where that raises ModelError."""
    try:
        return language_model(model, of="judge")
    except ModelError as error:
        raise JudgeError(str(error)) from error


def openai_judge_model(
    base_url: str, model: str, api_key: str | None = None, *, settings: ModelSettings | None = None
) -> Model:
    """A judge's model behind an OpenAI-compatible server such as vLLM, llama.cpp or a gateway.

    As `cm2_agent.llm.openai_model`; the schema of the verdicts goes into every request.

    Args:
        base_url: Where the server is, `http://localhost:8000/v1` say.
        model: The model's name there; `openai-chat:NAME` is NAME.
        api_key: None sends "none", for servers that need no key.
        settings: pydantic-ai's model settings, such as `{"temperature": 0}`.

    Raises:
        MissingExtra: The openai package is not installed.

    >>> from cm2_agent import LLMJudge
    >>> from cm2_agent.rewards import openai_judge_model
    >>> judge = LLMJudge(openai_judge_model("http://localhost:8000/v1", "qwen3-8b"), votes=3)
    >>> judge.version.endswith(";votes=3")
    True
    """
    return openai_model(base_url, model, api_key, schema=("verdicts", SCHEMA), settings=settings)


def _read_tokens(window: Window, items: Mapping[str, str]) -> int:
    return (len(INSTRUCTIONS) + len(window.text) + sum(map(len, items.values()))) // CHARACTERS_A_TOKEN


__all__ = ["JudgeClient", "ServedAnswer", "judge_model", "openai_judge_model"]
