"""Token streams: many dialogues advance through one model together, a token at a time, and each token is read once.

All streams stand at the same place of their sequences, so that nothing is padded and nothing masked: where one reads
what a user or a tool wrote, another draws. Keys and values stay from the first token to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicLayer

from cm2_agent.errors import ModelError
from cm2_agent.models.generation import draw_tokens
from cm2_agent.trainers.dropout import evaluating


class Stream(Protocol):
    """One dialogue's tokens. `ids` are those that are known so far; `next_uniform` is the number in [0, 1) that decides
    the next one, `draws` takes the drawn token with its natural log-probability and may know further ids then. `done`
    once nothing more is to be read or drawn."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def done(self) -> bool: ...

    def next_uniform(self) -> float: ...

    def draws(self, token: int, logprob: float) -> None: ...


@torch.inference_mode()
def advance(model: Any, streams: Sequence[Stream], *, temperature: float) -> None:
    """Read and draw until every stream is done.

    Args:
        model: a transformers causal language model.
        streams: each with at least one id.
        temperature: 0 (greedy; log-probabilities are then the model's own) or more.

    Raises:
        ModelError: the model's logits are no numbers.
    """
    slots = [Slots() for _ in range(model.config.get_text_config().num_hidden_layers)]
    cache = Cache(layers=[*slots])
    rows = [stream for stream in streams if not stream.done]
    with evaluating(model):
        place = 0
        while alive := [row for row in rows if not row.done]:
            if 4 * len(alive) <= 3 * len(rows):  # to copy the cache costs about a step
                kept = torch.tensor([number for number, row in enumerate(rows) if not row.done], device=model.device)
                for layer in slots:
                    layer.batch_select_indices(kept)
                rows = alive
            # what all streams know is read at once: the system message and the first words of the user, mostly
            stop = min(len(row.ids) for row in alive)
            read = [[0] * (stop - place) if row.done else list(row.ids[place:stop]) for row in rows]
            positions = torch.arange(place, stop, device=model.device)[None].expand(len(rows), -1)
            output = model(
                input_ids=torch.tensor(read, device=model.device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            place = stop
            drawing = [number for number, row in enumerate(rows) if not row.done and len(row.ids) == place]
            if drawing:
                _draw([rows[number] for number in drawing], output.logits[drawing, -1].float(), temperature)


def _draw(rows: Sequence[Stream], logits: torch.Tensor, temperature: float) -> None:
    """Draw the next token of each row from its logits, (B, V)."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        drawn = logits.argmax(-1)
    else:
        uniforms = [row.next_uniform() for row in rows]
        drawn = draw_tokens(logprobs, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
    taken = logprobs.gather(-1, drawn[:, None]).squeeze(-1)
    if not bool(taken.isfinite().all()):
        raise ModelError(
            "the model's logits are NaN or infinite, so that nothing can be drawn; expected finite numbers: the"
            " weights may be broken (a run that diverged)"
        )
    for row, token, logprob in zip(rows, drawn.tolist(), taken.tolist(), strict=True):
        row.draws(token, logprob)


class Slots(DynamicLayer):
    """A layer's keys and values in memory that is taken ahead, so that a further token copies no earlier one."""

    AHEAD = 256

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states.new_empty(0), value_states.new_empty(0)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._keys = self._with_room(self._keys, key_states, start, stop)
        self._values = self._with_room(self._values, value_states, start, stop)
        self._keys[:, :, start:stop] = key_states
        self._values[:, :, start:stop] = value_states
        self.keys, self.values = self._keys[:, :, :stop], self._values[:, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        stop = self.get_seq_length()
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, :stop], self._values[:, :, :stop]

    def _with_room(self, held: torch.Tensor, states: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The memory, or a larger one with what it holds, where `stop` places do not fit."""
        if held.dim() == 4 and held.shape[2] >= stop:
            return held
        rows, heads, _, width = states.shape
        larger = states.new_empty((rows, heads, stop + self.AHEAD, width))
        if start:
            larger[:, :, :start] = held[:, :, :start]
        return larger
