"""What a probe finds in every chat template that TRL ships, and what is refused by name."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from cm2_agent.errors import ModelError
from cm2_agent.models.chat_template import short_id, template_messages
from cm2_agent.models.response_template import TemplateFormat, known_templates
from cm2_agent.models.template_probe import TOOL, probe
from cm2_agent.models.tokenizer import byte_tokenizer
from tests.models.scripted_network import scripted
from tests.models.shipped_templates import NAMES, byte_level, shipped

IGNORES = "it ignores `tools`"
DROPS_CALLS = "drops the calls"
FORMAT = {
    "diffusion_gemma": "TRL (gemma4)",
    "gemma4": "TRL",
    "glm4moe": "glm",
    "gptoss": "harmony",
    "lfm2_2_5": "lfm2.5",
    "lfm2_2_5_vl": "pythonic",
    "lfm2_v2": "pythonic",
    "llama3_1": "llama",
    "llama3_2": "llama",
    "muse_glimmer": "invoke",
    "nemotron": "qwen3-coder",
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_5": "qwen3-coder",
    "qwen3_6": "qwen3-coder",
    "qwen3_8": "qwen3-coder",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
}
REFUSED = {
    **dict.fromkeys(("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3"), IGNORES),
    **dict.fromkeys(("idefics3", "llama3", "llava_next", "phi3", "phi3_5", "smolvlm"), IGNORES),
    "qwen2_5_vl": IGNORES,
    "lfm2": DROPS_CALLS,
}
ENDINGS = (
    *("<|im_end|>", "<turn|>", "<|tool_response>", "<|eot_id|>", "<|call|>", "<|eot|>", "<|observation|>"),
    "</tool_call>",
)
MISTRAL = r"""{{ bos_token }}{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls -%}[TOOL_CALLS][{%- for t in m.tool_calls -%}
{%- if t.id is not defined or t.id | length != 9 -%}{{ raise_exception('ids must have nine characters') }}{%- endif -%}
{"name": "{{ t.function.name }}", "arguments": {{ t.function.arguments | tojson }}, "id": "{{ t.id }}"}
{{- ', ' if not loop.last }}{%- endfor -%}]<eos>
{%- elif m.role == 'assistant' -%}{{ m.content }}<eos>
{%- elif m.role == 'tool' -%}
{%- if m.tool_call_id | length != 9 -%}{{ raise_exception('ids must have nine characters') }}{%- endif -%}
[TOOL_RESULTS]{"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- endif -%}{%- endfor -%}"""


def family(name: str, known: dict[str, str]) -> str | None:
    """The longest name of the table that a template's name begins with."""
    stem = name.removesuffix("_training")
    return max((one for one in known if stem == one or stem.startswith(one)), key=len, default=None)


@pytest.mark.parametrize("name", NAMES)
def test_each_template_that_trl_ships_is_read_or_refused_by_name(name: str) -> None:
    profile = probe(shipped(name))
    refused = name.removesuffix("_training") in REFUSED
    if refused:
        assert any(REFUSED[name.removesuffix("_training")] in problem for problem in profile.problems)
        with pytest.raises(ModelError, match=f"chat template of {name}"):
            profile.require_tools(name)
        return
    assert profile.problems == ()
    wanted = family(name, FORMAT)
    assert wanted is not None
    assert profile.calls.name.removeprefix("response template of ") == FORMAT[wanted]
    assert (profile.tools_shown, profile.calls_shown, profile.results_shown) == (True, True, True)
    assert profile.losses == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name.removesuffix("_training") not in REFUSED])
def test_a_dialogue_with_a_call_keeps_the_models_tokens_and_shows_the_result(name: str) -> None:
    """The template writes the call, the model samples it, and what follows is what the template writes after it."""
    tokenizer = shipped(name)
    profile = probe(tokenizer)
    turn = AIMessage("", tool_calls=[{"name": "probe_order", "args": {"text": "a", "count": 7}, "id": "a1B2c3D4e"}])
    asked = HumanMessage("Where is it?")
    rendered = tokenizer.apply_chat_template(
        template_messages([asked, turn], profile), tools=[TOOL], tokenize=False, add_generation_prompt=False
    )
    prompt = tokenizer.decode(scripted([], tokenizer=tokenizer).prompt_ids([asked], [TOOL]))
    common = next((i for i, (a, b) in enumerate(zip(prompt, rendered, strict=False)) if a != b), len(prompt))
    if common < len(prompt):
        common = max(rendered.rfind(end, 0, common) + 1 for end in ">]\n")
    ending = next(word for word in ENDINGS if rendered.rstrip().endswith(word))
    written = rendered[common:].rstrip()
    if ending == "</tool_call>":  # GLM writes no ending: the next role is the stop token
        written, ending = written + "<|observation|>", "<|observation|>"
    tokenizer.eos_token = ending
    model = scripted([written, f"It was shipped.{ending}"], tokenizer=tokenizer)
    first = model.invoke([asked], tools=[TOOL])
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("probe_order", {"text": "a", "count": 7})]
    assert not first.invalid_tool_calls
    result = ToolMessage(f"Shipped on Friday {ending}", name="probe_order", tool_call_id=first.tool_calls[0]["id"])
    second = model.invoke([asked, first, result], tools=[TOOL])
    own = first.response_metadata["prompt_ids"] + first.response_metadata["completion_ids"]
    read = second.response_metadata["prompt_ids"]
    assert read[: len(own)] == own
    assert "Shipped on Friday" in tokenizer.decode(read[len(own) :])
    fresh = tokenizer.apply_chat_template(
        template_messages([asked, first, result], profile), tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
    after = tokenizer.decode(read[len(own) :])
    assert fresh.endswith(after.lstrip("\n") if ending == "<|observation|>" else after)
    end = tokenizer.convert_tokens_to_ids(ending)
    clean = result.model_copy(update={"content": "Shipped on Friday"})
    assert read.count(end) == model.prompt_ids([asked, first, clean], [TOOL]).count(end)


def test_nine_characters_for_a_template_that_wants_them() -> None:
    words = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    tokenizer = byte_level(MISTRAL, [*words, "[/TOOL_RESULTS]"])
    profile = probe(tokenizer)
    assert (profile.calls.name, profile.short_ids, profile.problems) == ("mistral", True, ())
    call = '[TOOL_CALLS][{"name": "probe_order", "arguments": {"text": "a"}}]<eos>'
    model = scripted([call, "It was shipped.<eos>"], tokenizer=tokenizer)
    asked = HumanMessage("Where is it?")
    first = model.invoke([asked], tools=[TOOL])
    call_id = first.tool_calls[0]["id"]
    second = model.invoke([asked, first, ToolMessage("Shipped.", tool_call_id=call_id)], tools=[TOOL])
    assert second.content == "It was shipped."
    assert short_id(str(call_id)) in tokenizer.decode(second.response_metadata["prompt_ids"])


def test_a_template_that_ignores_tools_is_refused_when_they_are_bound() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    model = scripted(["Hello.<|im_end|>"], tokenizer=tokenizer)
    with pytest.raises(ModelError, match="ignores `tools`"):
        model.bind_tools([TOOL])
    with pytest.raises(ModelError, match="drops the calls"):
        model.invoke("Hello", tools=[TOOL])
    assert model.bind_tools([]).invoke("Hello").content == "Hello."


def test_a_tokenizers_own_response_template_reads_a_format_of_its_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        '<tool_call>{"name": "{{ function.name }}", "arguments": {{ arguments }}}</tool_call>',
        "@@{{ function.name }}@{{ arguments }}@@",
    )
    assert any("no known format" in problem for problem in probe(tokenizer).problems)
    tokenizer.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open_pattern": r"@@(?P<name>\w+)@",
                "close_pattern": r"@@",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {},
        },
    }
    profile = probe(tokenizer)
    assert (profile.calls.name, profile.problems) == ("response template of the tokenizer", ())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<|tool_call>call:probe_order{text:<|"|>a<|"|>}', "cannot be read"),
        ("<|tool_call>call:probe_order{text:a b}<tool_call|>", "cannot be read"),
        ("<|tool_call>call:probe_order[1]<tool_call|>", "not an object"),
    ],
)
def test_transformers_parser_runs_no_call_that_is_not_whole(text: str, problem: str) -> None:
    form = known_templates(shipped("gemma4"))[0]
    _, said, (call,) = form.read_whole(text, "<|turn>model\n", [TOOL])
    assert (said, call.arguments) == ("", None)
    assert problem in str(call.error)


def test_an_argument_between_tags_that_is_not_whole_is_no_call() -> None:
    form = next(one for one in known_templates(byte_tokenizer()) if one.source == "TRL (qwen3_5)")
    broken = "<tool_call>\n<function=probe_order>\n<parameter=text>\na\n</function>\n</tool_call>"
    assert isinstance(form, TemplateFormat)
    _, _, (call,) = form.read_whole(broken, "<|im_start|>assistant\n", [TOOL])
    assert call.arguments is None
    _, said, calls = form.read_whole("Hm.</tool_call>", "<|im_start|>assistant\n", [TOOL])
    assert calls == []
    assert said.startswith("Hm.")


def test_a_template_stays_in_its_sandbox() -> None:
    """One that reaches for Python's insides renders nothing."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}"
    profile = probe(tokenizer)
    assert any("does not show what a user says" in problem for problem in profile.problems)
