"""A network that writes given texts, one completion after another: a chat model over it is real but for the weights.

model = scripted(["<think>hm</think>Yes.<|im_end|>", "Bye.<|im_end|>"])
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer


class ScriptedNetwork(torch.nn.Module):
    """One row at a time; all the probability is on the script's next token."""

    def __init__(self, tokenizer: Any, texts: Iterable[str]) -> None:
        super().__init__()
        self.vocabulary = len(tokenizer)
        self.script = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self.prompts: list[list[int]] = []
        self.config = SimpleNamespace(_name_or_path="scripted", max_position_embeddings=None)
        self.config.get_text_config = lambda: self.config
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, past_key_values: int | None = None, **_: Any) -> Any:
        (prompt,) = input_ids.tolist()
        if past_key_values is None:
            self.prompts.append(prompt)
        place = past_key_values or 0
        logits = torch.full((1, 1, self.vocabulary), -100.0)
        logits[0, 0, self.script[len(self.prompts) - 1][place]] = 100.0
        return SimpleNamespace(logits=logits, past_key_values=place + 1)


def scripted(texts: Iterable[str], tokenizer: Any = None, **fields: Any) -> LocalChatModel:
    """A LocalChatModel that writes these texts; each but one that a stop string or `max_tokens` ends must end in
    `<|im_end|>`. `model.model.prompts` are the token ids that it read."""
    tokenizer = tokenizer or byte_tokenizer()
    network = ScriptedNetwork(tokenizer, texts)
    return LocalChatModel(
        **{"model": network, "tokenizer": tokenizer, "model_version": "scripted", "max_tokens": 400, **fields}
    )
