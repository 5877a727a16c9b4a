"""Chat models behind an OpenAI-compatible server, with the token ids that vLLM gives.

vLLM reports the token ids it read and wrote when asked to, and langchain-openai drops them. The subclass here puts them
into `response_metadata`, under the same names as a local model's. A server that reports none yields text-only messages:
fit for imitation, not for GRPO. Importing this module raises MissingExtra without the extra `openai`."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from cm2_agent.errors import MissingExtra
from cm2_agent.models.served_name import served_name

try:
    from langchain_openai import ChatOpenAI
except ImportError as error:
    raise MissingExtra("openai", "OpenAI-compatible endpoints") from error


def openai_compatible(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    model_version: str | None = None,
    token_ids: bool = False,
    logprobs_mode: str = "raw",
    **settings: Any,
) -> BaseChatModel:
    """A chat model at `base_url`, such as "http://localhost:8000/v1".

    Args:
        base_url: the server's address, with the path before `/chat/completions`.
        model: the name under which the server knows the model; `openai-chat:NAME` is NAME.
        api_key: sent as the bearer token. Without one, OPENAI_API_KEY of the environment goes to api.openai.com, and
            none to any other server.
        model_version: names the weights that are served. Default: the server's own name for the model.
        token_ids: ask for token ids and logprobs, as vLLM understands it; other servers may refuse the request.
        logprobs_mode: what the server takes logprobs of: "raw" (vLLM's default: before temperature and truncation) or
            "processed".
        settings: go to ChatOpenAI (temperature, top_p, max_tokens, timeout, …).

    Raises:
        ValueError: another `logprobs_mode`.
        MissingExtra: on import, without langchain-openai; the message is the pip line.

    >>> from cm2_agent import openai_compatible
    >>> model = openai_compatible("http://localhost:8000/v1", "Qwen/Qwen3-8B", token_ids=True, temperature=0.7)
    >>> model.model_name, model.logprobs
    ('Qwen/Qwen3-8B', True)
    """
    if logprobs_mode not in ("raw", "processed"):
        raise ValueError(f"logprobs_mode {logprobs_mode!r}: expected 'raw' or 'processed'")
    if token_ids:
        settings["logprobs"] = True
        settings["extra_body"] = {**settings.get("extra_body", {}), "return_token_ids": True}
    if api_key is not None or "api.openai.com" not in base_url:
        settings["api_key"] = api_key or "none"
    return EndpointChatModel(
        base_url=base_url,
        model=served_name(model),
        served_version=model_version,
        logprobs_mode=logprobs_mode,
        # An OpenAI-compatible server speaks chat completions; few speak the responses protocol.
        use_responses_api=False,
        **settings,
    )


class EndpointChatModel(ChatOpenAI):
    """ChatOpenAI that passes on what the server reports about tokens; made by `openai_compatible`."""

    served_version: str | None = None
    logprobs_mode: str = "raw"

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        data = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation, choice in zip(result.generations, data.get("choices") or [], strict=False):
            info = dict(generation.generation_info or {})
            info |= self._tokens(data, choice) | self._about(data)
            generation.generation_info = info
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        choices = chunk.get("choices") or []
        if made is None or not choices:
            return made
        info = dict(made.generation_info or {}) | self._tokens(chunk, choices[0])
        if chunk.get("prompt_token_ids"):  # the first chunk alone has it; a second copy would be appended on merging
            info |= self._about(chunk)
            info.pop("model_name")  # ChatOpenAI adds it, in the last chunk
        made.generation_info = info or None
        return made

    def _tokens(self, data: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
        """Ids and logprobs of a response or of a chunk; lists, so that the chunks of a stream add up to the whole."""
        found: dict[str, Any] = {}
        prompt = data.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if prompt:
            found["prompt_ids"] = list(prompt)
        if choice.get("token_ids") is not None:
            found["completion_ids"] = list(choice["token_ids"])
            if choice.get(
                "logprobs"
            ):  # in a stream the last may hold none; a list all the same, or it could not be added
                found["logprobs"] = [float(token["logprob"]) for token in choice["logprobs"].get("content") or []]
        return found

    def _about(self, data: dict[str, Any]) -> dict[str, Any]:
        name = str(data.get("model") or self.model_name)
        body = self.extra_body or {}
        return {
            "model_name": name,
            "model_version": self.served_version or name,
            "sampling": {
                # A server may have defaults of its own; the protocol's is 1.
                "temperature": 1.0 if self.temperature is None else self.temperature,
                "top_p": 1.0 if self.top_p is None else self.top_p,
                "top_k": body.get("top_k", 0),
                "max_tokens": self.max_tokens,
                "logprobs": self.logprobs_mode,
            },
        }
