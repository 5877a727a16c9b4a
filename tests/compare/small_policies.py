"""A policy of the lending desk that is made in seconds: it calls tools, copies badly, and is right by luck."""

from pathlib import Path

from cm2_agent.benchmarks.lending_desk.demonstrations import Start, demonstrations
from cm2_agent.benchmarks.lending_desk.policy import tokenizer, tools
from cm2_agent.trainers.cold_start import imitate, save_small_policy, small_policy


def hasty_policy(out: Path, *, steps: int = 60, seed: int = 0, context: int = 2048) -> Path:
    """Imitates careful clerks for a few steps."""
    words = tokenizer()
    model = small_policy(words, seed=seed, hidden=48, layers=2, ffn=96, context=context)
    shown = demonstrations(64, 2, Start(sloppy=0.2, skips=0.5), seed)
    imitate(model, words, shown, tools=tools(), steps=steps, batch=8, learning_rate=1e-2, warmup=5, seed=seed)
    return save_small_policy(model, words, out)
