"""The model a judge asks: any of `llm.models`, and a server of your own that is held to the verdicts' schema. Apart
from the judge so that naming a model wrongly, or lacking its package, is said before anything is judged."""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from cm2_agent.errors import JudgeError, ModelError
from cm2_agent.llm.providers import language_model, openai_model

from .reply import SCHEMA


def judge_model(model: str | Model | BaseChatModel) -> Model:
    """`language_model` for a judge: raises JudgeError where that raises ModelError."""
    try:
        return language_model(model, of="judge")
    except ModelError as error:
        raise JudgeError(str(error)) from error


def openai_judge_model(
    base_url: str, model: str, api_key: str | None = None, *, settings: ModelSettings | None = None
) -> Model:
    """`openai_model` for a judge: the schema of its verdicts goes into every request. Raises MissingExtra without the
    openai package."""
    return openai_model(base_url, model, api_key, schema=("verdicts", SCHEMA), settings=settings)


__all__ = ["judge_model", "openai_judge_model"]
