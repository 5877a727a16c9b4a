"""Tokenizers whose seams and ends differ from the bundled one's: SentencePiece, and templates written in a line."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }} </s>{% endif %}{% endfor %}"
)
SPECIAL = {
    CHATML: (["<s>", "<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    ZEPHYR: (["<s>", "</s>"], "</s>"),
    LLAMA2: (["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
}


def sentencepiece(template: str, scheme: str, *, pad: str | None = None) -> Any:
    """A tokenizer of single characters that puts `▁` before a text, as SentencePiece does: with the scheme "first"
    before the whole, with "always" after every special token too."""
    special, eos = SPECIAL[template]
    vocabulary = {"<unk>": 0}
    for character in ["▁", *map(chr, range(33, 127)), "\n"]:
        vocabulary[character] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        pad_token=pad or eos,
        bos_token="<s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
