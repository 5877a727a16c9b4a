"""`LocalChatModel`: a transformers model as a chat model whose messages carry token ids and logprobs.

It needs the extra `train`: importing this module without it raises MissingExtra. torch and transformers themselves are
imported when a model is made, not before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, PrivateAttr, model_validator

from cm2_agent.errors import ModelError, require_extra
from cm2_agent.models.adapters import plain_model
from cm2_agent.models.batching import batched, current_seat
from cm2_agent.models.chat_template import history_hash
from cm2_agent.models.dialogue_tokens import HISTORY, DialogueTokens
from cm2_agent.models.stop_tokens import StopTokens, stop_tokens
from cm2_agent.models.template_probe import TemplateProfile
from cm2_agent.models.weights import fingerprint

if TYPE_CHECKING:
    from cm2_agent.models.generation import Generation, Generator, Request, Sampling

__all__ = ["LocalChatModel", "fingerprint"]

require_extra("train", "Local chat models", "torch", "transformers")


class LocalChatModel(BaseChatModel):
    """A transformers causal language model and its tokenizer as a chat model that can call tools.

    Each AIMessage carries in `response_metadata`: `model_name`, `model_version`, `prompt_ids`, `completion_ids` (with
    the stop token, if one was drawn), `logprobs` (natural log, one a completion token), `sampling` (temperature, top_p,
    top_k, max_tokens, logprobs: "processed" or "raw") and `finish_reason` ("stop", "length" or "tool_calls"); token
    counts are in `usage_metadata`. Thinking (`<think>…</think>` and other spellings, whether the model or the chat
    template opened it) is no content: it is in `additional_kwargs["reasoning_content"]`.

    All calls of one dialogue form one token sequence: the next prompt is the last prompt, the model's completion in the
    very tokens that it sampled, and the encoding of only what came after. If the history was edited, it is encoded
    afresh from the chat template.

    An answer ends at the stop tokens of the model's configuration and of its tokenizer. Where the chat template ends
    messages with none of them, as on base checkpoints, the template's own end is a stop token too; where it has none,
    a warning says so.

    Concurrent async calls are batched (see `batching`). A malformed tool call becomes one of `invalid_tool_calls`,
    never an error. A sync call runs alone, at once. Weights must not change under a model that is in use: make a new
    one, with a new version.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, with a chat template.
        model_name: by default the configuration's, or the class's name.
        model_version: names these weights. Default: a fingerprint of them.
        temperature: 0 (greedy) or more.
        top_p: the share of the probability that is sampled from, in (0, 1]; 1 truncates nothing.
        top_k: the number of tokens that is sampled from; 0 truncates nothing.
        max_tokens: new tokens a call, at least 1.
        seed: of calls outside a lockstep: the n-th call of this object draws from (seed, n).
        max_batch: the most rows of one forward pass.
        template_kwargs: go to the chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
        ValueError: a sampling setting out of range.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from cm2_agent import LocalChatModel
    >>> from cm2_agent.models import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))  # untrained, so it answers noise
    >>> message = LocalChatModel(model=network, tokenizer=tokenizer, max_tokens=4).invoke("Where is order 7?")
    >>> ids, logprobs = (message.response_metadata[key] for key in ("completion_ids", "logprobs"))
    >>> 1 <= len(ids) == len(logprobs) <= 4
    True
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: Any
    tokenizer: Any
    model_name: str = ""
    model_version: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0
    max_batch: int = 256
    template_kwargs: dict[str, Any] = {}  # pydantic copies defaults  # noqa: RUF012

    _generator: Generator = PrivateAttr()
    _dialogue: DialogueTokens = PrivateAttr()
    _stops: StopTokens = PrivateAttr()
    _calls: int = PrivateAttr(default=0)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str | None = None,
        base: Any = None,
        model_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Load model and tokenizer from a directory or the hub; a LoRA adapter with the model that it is over.

        No code of the directory is run, and weights are read from safetensors alone.

            model = LocalChatModel.load("Qwen/Qwen3-0.6B", temperature=0.7, max_tokens=512)
            message = model.bind_tools([get_order]).invoke("Where is order 7?")

        Args:
            path: a directory, or a hub name such as "Qwen/Qwen3-0.6B".
            dtype: of the weights, as torch names it ("float32", "bfloat16"). Default: the checkpoint's own.
            base: the model below an adapter, where it is not the one that the adapter names.
            model_options: go to transformers' `from_pretrained`; `gguf_file` goes to the tokenizer too.
            settings: the fields of this class: `max_tokens`, `temperature`, `top_p`, `seed`, `model_version`, …

        Raises:
            ModelError: there is no such model, it cannot be loaded so, or its tokenizer has no chat template.
        """
        from cm2_agent.models.loading import load_policy_model, load_tokenizer
        from cm2_agent.models.model_source import model_source

        options, source = dict(model_options or {}), model_source(path)
        tokenizer = load_tokenizer(source, **{k: v for k, v in options.items() if k == "gguf_file"})
        model = load_policy_model(source, dtype=dtype, base=base, options=options)
        settings.setdefault("model_name", Path(path).name if Path(path).is_dir() else str(path))
        return cls(model=model, tokenizer=tokenizer, **settings)

    @model_validator(mode="after")
    def _prepare(self) -> Self:
        from cm2_agent.models.generation import Generator

        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the tokenizer has no chat template; set tokenizer.chat_template, or take an instruction-tuned model"
            )
        self.model_name = (
            self.model_name or getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__
        )
        self.model_version = self.model_version or fingerprint(self.model)
        self._stops = stop_tokens(self.model, self.tokenizer, self.template_kwargs)
        self._stops.warn(self.model_name)
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else min(self._stops.ids, default=0)
        self._generator = Generator(plain_model(self.model), pad_id=pad, max_batch=self.max_batch)
        self._dialogue = DialogueTokens(self.tokenizer, stop_ids=self._stops.ids, template_kwargs=self.template_kwargs)
        self._sampling({})  # refuse bad settings now rather than at the first call
        return self

    @property
    def _llm_type(self) -> str:
        return "cm2-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, "model_version": self.model_version, "temperature": self.temperature}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, through its chat template.

        Raises ModelError with the list of what is missing where the template cannot show tools, calls or results, or
        writes calls in a form that is not known; ValueError for a forced `tool_choice`, which cannot be honoured.
        """
        if tool_choice not in (None, "auto"):
            raise ValueError(
                f"tool_choice is {tool_choice!r}, and a local model cannot be forced; expected None or 'auto'"
            )
        if tools:
            self.template.require_tools(self.model_name)
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    @property
    def template(self) -> TemplateProfile:
        """What the chat template shows and how it writes calls: found by a probe, once."""
        return self._dialogue.template

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request, history = self._request(messages, kwargs)
        result = self._generator.run([request])[0]
        if isinstance(result, Exception):
            raise result
        return self._result(request, result, history, stop, kwargs.get("tools"))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request, history = self._request(messages, kwargs)
        return self._result(request, await batched(self._generator, request), history, stop, kwargs.get("tools"))

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        from cm2_agent.models.generation import Sampling

        return Sampling(
            **{key: kwargs.get(key, getattr(self, key)) for key in ("temperature", "top_p", "top_k", "max_tokens")}
        )

    def _request(self, messages: Sequence[BaseMessage], kwargs: dict[str, Any]) -> tuple[Request, str]:
        from cm2_agent.models.generation import Request

        seat = current_seat()
        if seat is not None:
            seed: tuple[int, ...] = seat.next_seed()
        else:
            seed, self._calls = (self.seed, self._calls), self._calls + 1
        tools = kwargs.get("tools") or None
        self.template.require_words(self.model_name)
        if tools:
            self.template.require_tools(self.model_name)
        request = Request(
            prompt_ids=self.prompt_ids(messages, tools),
            sampling=self._sampling(kwargs),
            stop_ids=self._dialogue.stop_ids,
            seed=seed,
        )
        return request, history_hash(messages, tools)

    def prompt_ids(self, messages: Sequence[BaseMessage], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The token ids that the model reads before it answers: an extension of its last call's tokens wherever the
        history allows."""
        return self._dialogue.prompt_ids(messages, tools, written_by=self.model_name)

    def _result(
        self,
        request: Request,
        generation: Generation,
        history: str,
        stop: list[str] | None,
        tools: list[dict[str, Any]] | None = None,
    ) -> ChatResult:
        ids, logprobs, stopped = generation.completion_ids, generation.logprobs, generation.stopped
        cut = self._dialogue.cut(ids, stop or ())
        if cut is not None:
            ids, logprobs, stopped = ids[:cut], logprobs[:cut], True
        message = self._dialogue.parse(request.prompt_ids, ids, stop or (), history, tools)
        sampling = request.sampling
        message.response_metadata = {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "prompt_ids": list(request.prompt_ids),
            "completion_ids": ids,
            "logprobs": logprobs,
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "max_tokens": sampling.max_tokens,
                "logprobs": sampling.logprobs,
                **({"stop": list(stop)} if stop else {}),
            },
            **({} if cut is None else {"untrainable": "a stop string cut the text: the token ids hold more of it"}),
            "finish_reason": "length" if not stopped else "tool_calls" if message.tool_calls else "stop",
        }
        message.usage_metadata = {
            "input_tokens": len(request.prompt_ids),
            "output_tokens": len(ids),
            "total_tokens": len(request.prompt_ids) + len(ids),
        }
        message.additional_kwargs[HISTORY] = history
        return ChatResult(generations=[ChatGeneration(message=message)])
