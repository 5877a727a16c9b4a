"""Every number of the quickstart, in one place; what the policy and the loop are made of reads from here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The tiny Qwen3: about 0.4 M parameters."""

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 24
    ffn: int = 256
    init_std: float = 0.08


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Copy drill, then supervised fine-tuning on mostly sloppy demonstrations."""

    drill_steps: int = 120
    drill_lr: float = 6e-3
    drill_batch: int = 16
    drill_words: int = 20
    demonstrations: int = 1600
    sloppy: float = 0.6
    steps: int = 300
    batch: int = 16
    lr: float = 4e-3
    warmup: int = 20


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """Rounds of stored rollouts, then GRPO on exactly these."""

    rounds: int = 8
    tasks: int = 48
    group: int = 12
    steps: int = 12  # two passes over what a round stored
    batch: int = 96  # rollouts an optimizer step
    lr: float = 6e-4  # of the first round
    last_lr: float = 1.5e-4  # of the last
    warmup: int = 2
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    weight_cap: float = 2.0
    max_tokens: int = 32

    def learning_rate(self, number: int) -> float:
        """The learning rate of round `number` (1-based), on the line from `lr` to `last_lr`: late rounds only
        sharpen."""
        done = (number - 1) / max(1, self.rounds - 1)
        return self.lr + done * (self.last_lr - self.lr)


@dataclass(frozen=True, kw_only=True)
class Config:
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    rounds: RoundConfig = field(default_factory=RoundConfig)


CONFIG = Config()
