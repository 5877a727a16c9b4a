"""A server on loopback that answers as vLLM does, with the tokens of a real small transformer: a call to a tool, which
it is made to write, and then what it draws. The n-th answer of a server is drawn from the seed n."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import convert_to_messages

from cm2_agent.models import LocalChatModel
from tests.models.vllm_server import Server, piece, response


class TransformerServer(Server):
    """Serves the policy as the model "m", with its tokenizer's chat template."""

    def __init__(self, policy: Any, tokenizer: Any) -> None:
        self.policy, self.tokenizer, self.lock = policy, tokenizer, threading.Lock()
        self.local = LocalChatModel(model=policy, tokenizer=tokenizer, max_tokens=8, seed=7)
        super().__init__()

    def answer(self, body: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        messages, tools = convert_to_messages(body["messages"]), body.get("tools")
        with self.lock:
            if messages[-1].type == "tool":
                found = self.local.invoke(messages, tools=tools).response_metadata
                return self._as_vllm(found["prompt_ids"], found["completion_ids"], found["logprobs"], [])
            call = {"name": "get_order", "arguments": {"order_id": len(messages)}}
            text = f"<tool_call>{json.dumps(call)}</tool_call><|im_end|>"  # as the template writes it
            prompt, written = self.local.prompt_ids(messages, tools), self.tokenizer.encode(text)
            function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
            made = {"id": f"call_{len(messages)}", "type": "function", "function": function}
            return self._as_vllm(prompt, written, self._logprobs(prompt, written), [made])

    def _logprobs(self, prompt: Sequence[int], written: Sequence[int]) -> list[float]:
        import torch

        ids = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            known = torch.log_softmax(self.policy(input_ids=ids).logits[0].double(), dim=-1)
        return [float(known[len(prompt) + place - 1, identity]) for place, identity in enumerate(written)]

    def _as_vllm(self, prompt: Any, ids: Any, logprobs: Any, calls: list[Any]) -> tuple[Any, list[Any]]:
        tokens = [
            (identity, self.tokenizer.decode([identity]), value) for identity, value in zip(ids, logprobs, strict=True)
        ]
        text = None if calls else self.tokenizer.decode(ids, skip_special_tokens=True)
        ended = "tool_calls" if calls else "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        message = {"tool_calls": calls} if calls else {}
        whole = response(
            text, tokens, message=message, choice={"finish_reason": ended}, usage=usage, prompt_token_ids=list(prompt)
        )
        first = piece({"role": "assistant", "content": ""}, prompt_token_ids=list(prompt))
        deltas: list[Any] = [{"tool_calls": [{"index": 0, **call}]} for call in calls] or [{"content": text}]
        chunks = [first, piece(deltas[0], tokens[:-1]), piece({}, tokens[-1:], ended)]
        return whole, [*chunks, piece() | {"choices": [], "usage": usage}]
