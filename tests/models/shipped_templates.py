"""The chat templates that TRL ships, each with a byte-level tokenizer that has the template's own special tokens.

python -m tests.models.shipped_templates  # writes the table of docs/how-to/models.md
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
_WORD = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|<\|?(?:turn|channel|tool_call|tool_response|tool)\|?>"
    r"|</?think>|\[/?INST\]|<end_of_utterance>|</s>"
)
_PLAIN = re.compile(r"</?(?:think|tool_call)>")  # as Qwen's tokenizers have them: added, and not special
STOPS = (
    *("<|im_end|>", "<turn|>", "<|tool_response>", "<|eot_id|>", "<|call|>", "<|return|>", "<|end|>", "<|eot|>"),
    *("<|user|>", "<|observation|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>"),
    "<end_of_utterance>",
)
"""The tokens at which models of these templates stop."""
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "models.md"
BEGIN, END = "<!-- templates: begin -->", "<!-- templates: end -->"


def byte_level(template: str, special: list[str], plain: list[str] = [], *, eos: str = "<eos>") -> Any:  # noqa: B006
    """A tokenizer with one token a byte, these special tokens, and these that are added without being special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    words = dict.fromkeys(["<bos>", "<eos>", "<pad>", *special])
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token=eos,
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


@lru_cache(maxsize=8)
def shipped(name: str) -> Any:
    """The tokenizer of one template."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    words = sorted(set(_WORD.findall(template)))
    return byte_level(
        template,
        [word for word in words if not _PLAIN.fullmatch(word)],
        [word for word in words if _PLAIN.fullmatch(word)],
    )


@lru_cache(maxsize=128)
def checked(name: str) -> Any:
    """The check of one template."""
    from cm2_agent.models.check import check_tokenizer

    tokenizer = shipped(name)
    known = tokenizer.get_vocab()
    return check_tokenizer(tokenizer, name=name, eos=[known[stop] for stop in STOPS if stop in known])


def table() -> str:
    """The page's table: every template, how its calls are read, or why it is refused."""
    rows = ["| template | tool calls | thinking | |", "|---|---|---|---|"]
    for name in NAMES:
        found = checked(name)
        calls = "**refused**" if found.calls == "none" else found.calls.partition(":")[0]
        calls += "; **check fails**" if found.problems and found.calls != "none" else ""
        words = "; ".join(found.problems or found.notes)
        rows.append(f"| `{name}` | {calls} | {_cell(found.thinking)} | {_cell(words)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    text = re.sub(r"(?:: |, the template )'.*?'(?=;|,|$)", "", text)  # what differs is for the command to show
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
