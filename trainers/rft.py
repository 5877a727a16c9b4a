"""Rejection sampling: imitation of a policy's own best rollouts, the baseline that GRPO has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError

from .imitation import Select
from .sft import SFT


class RFT(SFT):
    """Rejection sampling fine-tuning: `SFT` on the best rollouts of each group, or on those above a score.

    It is strong where rollouts with the full score exist: in one measured store it did better than GRPO (0.57 → 0.95
    of held-out tasks right, GRPO 0.87), and `select=1.0` takes those alone. Where no rollout has the full score, the
    best of a group are partial successes, and imitating them made every one of four policies worse (0.49 → 0.31, say)
    while GRPO went on improving them: see "When simpler methods do as well" in docs/why-checklists.md. Sample several
    rollouts a task, score them, and look at the share with a full score first.

    Args:
        model: the policy to train, as for `SFT`.
        out: the folder to write; as for `SFT`.
        select: "best" (those with the highest `Score.lower` of their group, ties included; none of a group that earned
            nothing), "best-turn" (the best of each turn, as in `SFT`), or the least `Score.lower` as a number in
            [0, 1].
        settings: the other keywords of `SFT`.

    Raises:
        TrainError: a setting that cannot be meant.

    >>> import tempfile
    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> from cm2_agent import RFT, Group, Message, Rollout, Run, Score, Trace
    >>> from cm2_agent.models import byte_tokenizer
    >>> def rollout(reply, reward):
    ...     run = Run(id=reply, messages=(Message.of("user", "A or B?"), Message.of("assistant", reply)))
    ...     return Rollout(trace=Trace.of(run), score=Score(trace_id=reply, reward_version="r:1", reward=reward))
    >>> group = Group(key={"task": "letters", "reward": "r:1"}, rollouts=(rollout("A", 1.0), rollout("B", 0.5)))
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    >>> rft = RFT(model, tempfile.mkdtemp(), tokenizer=byte_tokenizer(), steps=1)
    >>> folder = rft.train([group])
    >>> rft.report["rollouts"], rft.report["left_out"], rft.report["rows_from"]["words"]
    (1, {'not the best of its group': 1}, 1)
    """

    def __init__(self, model: Any, out: str | Path, *, select: Select = "best", **settings: Any) -> None:
        if select == "all":
            raise TrainError(
                "select 'all' chooses nothing; expected 'best', 'best-turn' or a score in [0, 1]. For all, take SFT"
            )
        super().__init__(model, out, select=select, **settings)
