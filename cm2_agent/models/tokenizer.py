"""The bundled byte-level tokenizer: built in code, so that nothing is downloaded and any text round-trips.

The quickstart's tiny policy uses it, and so does who turns text-only traces into rows without a model of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cm2_agent.errors import require_extra

__all__ = ["CHAT_TEMPLATE", "END", "PAD", "START", "TAGS", "byte_tokenizer", "word_tokenizer"]

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# Not "special": a decoder that skips special tokens must keep them, or no parser ever sees a tool call.
TAGS: Sequence[str] = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
    "<think>",
    "</think>",
)

# Qwen3's layout, a little leaner, with two differences. Rendering a longer dialogue never changes what an earlier
# message rendered to (so every call of a dialogue extends one token sequence), and the assistant's own
# words stand between generation marks (so that TRL's assistant_only_loss trains on exactly these).
CHAT_TEMPLATE = r"""{%- set nl = '\n' -%}
{%- if tools or (messages and messages[0].role == 'system') -%}
{{ '<|im_start|>system' + nl }}
{%- if messages and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}<tools>
{%- for tool in tools %}{{ tool if tool is string else tool | tojson }}{% endfor -%}
</tools>{% endif %}
{{- '<|im_end|>' + nl }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_start|>assistant' + nl }}
{%- generation -%}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
<tool_call>{"name": "{{ function.name }}", "arguments": {{ arguments }}}</tool_call>
{%- endfor -%}
<|im_end|>
{%- endgeneration -%}
{{ nl }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>tool' + nl }}<tool_response>{{ message.content }}</tool_response>{{ '<|im_end|>' + nl }}
{%- elif message.role != 'system' or not loop.first -%}
{{ '<|im_start|>' + message.role + nl + message.content + '<|im_end|>' + nl }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' + nl }}{% endif -%}
"""


def byte_tokenizer(extra_words: Iterable[str] = ()) -> Any:
    """A transformers PreTrainedTokenizerFast with one token a byte, the chat and tool tags, and one token for each of
    `extra_words`.

    Any unicode text is encoded, and decodes to itself. `extra_words` (printable ASCII and newlines; duplicates are
    dropped) shorten the sequences of a small model: the longest word wins. The vocabulary holds 256 + 3 + 8 +
    len(extra_words) tokens, the words in the order of the argument; the stop token is `<|im_end|>`.

    Raises ValueError for an empty word or one with other characters, whose bytes the decoder could not tell from
    text's; MissingExtra without the extra `train`.

    >>> from cm2_agent.models import byte_tokenizer
    >>> tokenizer = byte_tokenizer(["get_order"])
    >>> len(tokenizer), len(tokenizer.encode("get_order 7 é"))
    (268, 6)
    >>> tokenizer.decode(tokenizer.encode("get_order 7 é"))
    'get_order 7 é'
    """
    require_extra("train", "Tokenizers", "tokenizers", "transformers")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = list(dict.fromkeys(extra_words))
    for word in words:
        if not word or not all(char == "\n" or " " <= char <= "~" for char in word):
            raise ValueError(f"extra word {word!r}: expected printable ASCII, at least one character")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (PAD, START, END)])
    plain = [*TAGS, *(word for word in words if word not in TAGS)]
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


def word_tokenizer(
    dialogues: Iterable[Sequence[Mapping[str, Any]]] = (),
    *,
    tools: Iterable[Mapping[str, Any]] = (),
    words: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Any:
    """`byte_tokenizer` with a token for each word of a small environment, so that a dialogue is some hundred tokens
    long; any other text is still bytes.

    A token each have: `words`; the lines that open a message; system messages, `texts` and the schemas of `tools`, each
    as a whole; and the words that users and the agent say in `dialogues`, with the space before them. The same
    arguments give the same ids.

    Args:
        dialogues: messages of a chat template, as a `Demonstration` has them.
        tools: the tools' schemas, as `convert_to_openai_tool` gives them.
        words: ids, names, numbers and the like, which a policy shall copy; printable ASCII.
        texts: other texts that are read often and as a whole.

    Raises:
        ValueError: a word or text that is empty or not printable ASCII.

    >>> from cm2_agent.models import word_tokenizer
    >>> dialogue = [{"role": "user", "content": "Where is car 7?"}, {"role": "assistant", "content": "On level 3."}]
    >>> tokenizer = word_tokenizer([dialogue], words=["7", "3"])
    >>> len(tokenizer.encode("Where is car 7?")), len(tokenizer.encode("Who?"))
    (6, 4)
    """
    spoken: dict[str, None] = {}
    opened: dict[str, None] = {}
    for dialogue in dialogues:
        for message in dialogue:
            text = str(message.get("content") or "")
            if message["role"] == "system":
                opened[text] = None
            elif message["role"] in ("user", "assistant"):
                spoken.update(dict.fromkeys(re.findall(r" ?[A-Za-z]+", text)))
    known = set(words)
    shown = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    roles = [f"{role}\n" for role in ("system", "user", "assistant", "tool")]
    wholes = [text for text in (*opened, *texts, *shown) if text]
    return byte_tokenizer([*words, *roles, *wholes, *sorted(word for word in spoken if word.strip() not in known)])
