"""The local chat model, on a real (tiny, untrained) transformer: ids and logprobs are exactly what training will
see."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent.errors import ModelError
from cm2_agent.models.batching import Lockstep
from cm2_agent.models.chat_template import parse_completion
from cm2_agent.models.generation import Generator, Request, Sampling
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer
from tests.fuzzing import examples

KEYS = {"model_name", "model_version", "prompt_ids", "completion_ids", "logprobs", "sampling", "finish_reason"}
TOKENIZER = byte_tokenizer()


@tool
def get_order(order_id: str) -> str:
    """Look an order up."""
    return order_id


def network(seed: Any = 0) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
        **sizes,
    )
    return Qwen3ForCausalLM(config).eval()


NETWORK = network()


def chat_model(**fields: Any) -> Any:
    return LocalChatModel(
        **{"model": NETWORK, "tokenizer": TOKENIZER, "max_tokens": 12, "model_version": "v1", **fields}
    )


def training_logprobs(message: Any, temperature: Any = 1.0) -> Any:
    """As a trainer computes them: one unpadded forward over prompt and completion."""
    meta = message.response_metadata
    ids = torch.tensor([meta["prompt_ids"] + meta["completion_ids"]])
    with torch.no_grad():
        logits = NETWORK(input_ids=ids).logits[0, len(meta["prompt_ids"]) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(-1, ids[0, len(meta["prompt_ids"]) :, None]).squeeze(-1)


def test_a_message_carries_exactly_the_contracts_keys() -> None:
    message = chat_model().invoke("Hello")
    meta = message.response_metadata
    assert set(meta) == KEYS
    assert meta["model_version"] == "v1"
    assert meta["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "logprobs": "processed"}
    assert len(meta["completion_ids"]) == len(meta["logprobs"]) <= 12
    assert meta["finish_reason"] == ("stop" if meta["completion_ids"][-1] == TOKENIZER.eos_token_id else "length")
    usage = message.usage_metadata
    assert usage["input_tokens"] == len(meta["prompt_ids"])
    assert usage["output_tokens"] == len(meta["completion_ids"])
    json.dumps(meta)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_logprobs_equal_the_training_forward_even_in_a_padded_batch(temperature: Any) -> None:
    model = chat_model(temperature=temperature, seed=3)
    messages = await asyncio.gather(*(model.ainvoke("x" * n) for n in range(1, 30, 4)))
    for message in messages:
        expected = training_logprobs(message, temperature)
        assert torch.allclose(torch.tensor(message.response_metadata["logprobs"]), expected, atol=2e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}])
async def test_logits_that_are_no_numbers_fail_their_own_dialogue(value: float, sampling: dict[str, Any]) -> None:
    """One row of the batch is broken: its call raises, and the others draw what they draw without it."""
    broken = network()
    mark = TOKENIZER.encode("#", add_special_tokens=False)[0]

    def spoil(module: Any, given: Any, kwargs: Any, output: Any) -> Any:
        output.logits[(kwargs["input_ids"] == mark).any(-1), :, 5] = value
        return output

    broken.register_forward_hook(spoil, with_kwargs=True)
    model = chat_model(model=broken, seed=5, **sampling)
    clean = chat_model(seed=5, **sampling)
    answers = await asyncio.gather(*(model.ainvoke(text) for text in ("a", "#", "b")), return_exceptions=True)
    wanted = await asyncio.gather(*(clean.ainvoke(text) for text in ("a", "#", "b")))
    assert isinstance(answers[1], ModelError)
    assert "token 1 of its answer are NaN or infinite" in str(answers[1])
    for place in (0, 2):
        answer = answers[place]
        assert isinstance(answer, AIMessage)
        assert answer.response_metadata["completion_ids"] == wanted[place].response_metadata["completion_ids"]


def test_greedy_takes_the_most_likely_token_and_says_that_its_logprobs_are_raw() -> None:
    message = chat_model(temperature=0.0).invoke("Hello")
    meta = message.response_metadata
    ids = torch.tensor([meta["prompt_ids"] + meta["completion_ids"]])
    with torch.no_grad():
        best = NETWORK(input_ids=ids).logits[0, len(meta["prompt_ids"]) - 1 : -1].argmax(-1)
    assert best.tolist() == meta["completion_ids"]
    assert meta["sampling"]["logprobs"] == "raw"
    assert torch.allclose(torch.tensor(meta["logprobs"]), training_logprobs(message), atol=2e-5)


async def test_the_same_seed_gives_the_same_bits_and_a_dialogue_draws_its_own_numbers() -> None:
    async def rollout(order: Any, n_seats: Any = 6) -> Any:
        model, lockstep, written = chat_model(seed=99), Lockstep(n_seats), {}

        async def one(index: Any) -> None:
            async with lockstep.seat(index, seed=index):
                history = [HumanMessage("a" * (index + 1))]
                for _ in range(2):
                    history += [await model.ainvoke(history), HumanMessage("b")]
                written[index] = [m.response_metadata for m in history if isinstance(m, AIMessage)]

        await asyncio.gather(*(one(index) for index in order))
        return written

    first = await rollout([0, 1, 2, 3, 4, 5])
    assert first == await rollout([5, 2, 0, 4, 1, 3])
    alone = (await rollout([0], n_seats=1))[0]
    assert [m["completion_ids"] for m in alone] == [m["completion_ids"] for m in first[0]]


def generate(generator: Generator, requests: Any) -> Any:
    return generator.run(requests)


def request(prompt: Any, seed: Any = 0, **sampling: Any) -> Any:
    return Request(
        prompt_ids=prompt,
        sampling=Sampling(**{"max_tokens": 8, **sampling}),
        stop_ids=frozenset({TOKENIZER.eos_token_id}),
        seed=(seed, 0),
    )


@settings(max_examples=examples(15))
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 255), min_size=1, max_size=20),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from([1.0, 0.7]),
            st.sampled_from([0, 5]),
            st.integers(1, 10),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_batch_gives_what_each_row_gives_alone(rows: Any) -> None:
    requests = [
        request(prompt, seed, temperature=t, top_p=p, top_k=k, max_tokens=n)
        for seed, (prompt, t, p, k, n) in enumerate(rows)
    ]
    generator = Generator(NETWORK, pad_id=TOKENIZER.pad_token_id, max_batch=3)
    for got, one in zip(generate(generator, requests), requests, strict=True):
        [alone] = generate(generator, [one])
        assert got.completion_ids == alone.completion_ids
        assert got.logprobs == pytest.approx(alone.logprobs, abs=2e-5)
        assert len(got.completion_ids) <= one.sampling.max_tokens
        assert got.stopped == (got.completion_ids[-1] == TOKENIZER.eos_token_id)


def test_sampling_follows_the_models_distribution_and_truncation_only_its_best_tokens() -> None:
    generator = Generator(NETWORK, pad_id=TOKENIZER.pad_token_id)
    prompt = TOKENIZER.encode("Hello")
    with torch.no_grad():
        probs = NETWORK(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    drawn = generate(generator, [request(prompt, seed, max_tokens=1) for seed in range(3000)])
    counts = torch.bincount(torch.tensor([g.completion_ids[0] for g in drawn]), minlength=len(probs)) / 3000
    assert (counts - probs).abs().max() < 4 * (0.25 / 3000) ** 0.5
    best = set(probs.topk(3).indices.tolist())
    for generation in generate(generator, [request(prompt, seed, max_tokens=1, top_k=3) for seed in range(50)]):
        [token], [logprob] = generation.completion_ids, generation.logprobs
        assert token in best
        assert logprob == pytest.approx(float((probs[token] / probs.topk(3).values.sum()).log()), abs=1e-4)
    [nucleus] = generate(generator, [request(prompt, 1, max_tokens=1, top_p=1e-6)])
    assert nucleus.completion_ids == [int(probs.argmax())]
    assert nucleus.logprobs == pytest.approx([0.0], abs=1e-6)


def test_a_prompt_that_is_too_long_fails_alone_and_a_long_one_is_cut() -> None:
    generator = Generator(NETWORK, pad_id=TOKENIZER.pad_token_id)
    too_long, short, nearly = generate(generator, [request([1] * 512), request([1]), request([1] * 510, max_tokens=8)])
    assert isinstance(too_long, ModelError)
    assert "512" in str(too_long)
    assert len(short.completion_ids) >= 1
    assert len(nearly.completion_ids) <= 2


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_tokens": 0}, {"temperature": float("nan")}]
)
def test_fieldsthat_make_no_sense_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        chat_model(**bad)


def conversation(model: Any, turns: Any = 3) -> Any:
    """A dialogue in which every kind of message follows what the model wrote."""
    history = [SystemMessage("Be kind."), HumanMessage("Hello")]
    for turn in range(turns):
        answer = model.invoke(history)
        history.append(answer)
        history += [ToolMessage("found", tool_call_id=call["id"]) for call in answer.tool_calls]
        history.append(HumanMessage(f"And {turn}?"))
    return history


@pytest.mark.parametrize("tools", [[], [get_order]])
@pytest.mark.parametrize("seed", range(4))
def test_all_calls_of_a_dialogue_form_one_token_sequence(seed: Any, tools: Any) -> None:
    model = chat_model(seed=seed, max_tokens=30, temperature=1.5)
    bound = model.bind_tools(tools) if tools else model
    history = conversation(bound, turns=4)
    before: list[int] = []
    for message in history:
        if isinstance(message, AIMessage):
            meta = message.response_metadata
            assert meta["prompt_ids"][: len(before)] == before
            before = meta["prompt_ids"] + meta["completion_ids"]
    text = TOKENIZER.decode(before)
    assert text.count("<|im_start|>user\n") >= 4
    assert "<|im_end|><|im_end|>" not in text.replace("\n", "")


def test_what_comes_after_is_what_the_template_writes() -> None:
    model = chat_model(max_tokens=3)  # cut before the stop token: the template's own end of message follows
    first = model.invoke("Hello")
    assert first.response_metadata["finish_reason"] == "length"
    ids = model.prompt_ids([HumanMessage("Hello"), first, HumanMessage("More")])
    written = first.response_metadata["prompt_ids"] + first.response_metadata["completion_ids"]
    assert (
        TOKENIZER.decode(ids[len(written) :]) == "<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("edit", ["earlier message", "own words", "tools", "other model", "lost metadata"])
def test_an_edited_history_is_encoded_afresh(edit: Any) -> None:
    model, tools = chat_model(seed=1), None
    first = model.invoke("Hello")
    history = [HumanMessage("Hello"), first, HumanMessage("More")]
    if edit == "earlier message":
        history[0] = HumanMessage("Goodbye")
    elif edit == "own words":
        history[1] = first.model_copy(update={"content": "Something else"})
    elif edit == "tools":
        tools = [{"type": "function", "function": {"name": "get_order", "description": "", "parameters": {}}}]
    elif edit == "other model":
        model = chat_model(model_name="another")
    else:
        history[1] = AIMessage(first.content)
    ids = model.prompt_ids(history, tools)
    plain = [{"role": "user", "content": history[0].content}, {"role": "assistant", "content": history[1].content}]
    plain.append({"role": "user", "content": "More"})
    expected = TOKENIZER.apply_chat_template(plain, tools=tools, add_generation_prompt=True, tokenize=False)
    assert TOKENIZER.decode(ids) == expected
    start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")  # the untrained model writes it too: text, the second time
    assert ids.count(start) == (5 if tools else 4)


def test_qwen3s_own_way_of_dropping_thinking_does_not_break_the_sequence() -> None:
    tokenizer = byte_tokenizer()
    # As Qwen3's template does: thinking of earlier turns is not shown again.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if loop.last"
        " %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content"
        " }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = chat_model(tokenizer=tokenizer, seed=2)
    first = model.invoke("Hello")
    written = first.response_metadata["prompt_ids"] + first.response_metadata["completion_ids"]
    assert model.prompt_ids([HumanMessage("Hello"), first, HumanMessage("More")])[: len(written)] == written


def test_tool_calls_are_parsed_and_text_around_them_is_content() -> None:
    text = 'Let me see. <tool_call>\n{"name": "get_order", "arguments": {"order_id": "é"}}\n</tool_call>'
    message = parse_completion(text + '<tool_call>{"name": "b", "arguments": "{\\"x\\": 1}"}</tool_call>')
    assert message.content == "Let me see."
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("get_order", {"order_id": "é"}), ("b", {"x": 1})]
    assert parse_completion(text, "1").tool_calls[0]["id"] != parse_completion(text, "2").tool_calls[0]["id"]


BROKEN = ["{", "[]", '{"name": 3}', '{"name": "a", "arguments": [1]}', '{"name": "a", "arguments": {"x": NaN}}', ""]


@pytest.mark.parametrize("body", BROKEN)
def test_malformed_tool_calls_are_invalid_not_errors(body: Any) -> None:
    message = parse_completion(f"<tool_call>{body}</tool_call>ok")
    assert not message.tool_calls
    assert [call["args"] for call in message.invalid_tool_calls] == [body]
    assert message.invalid_tool_calls[0]["error"]
    assert message.content == "ok"


@settings(max_examples=examples(200))
@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "a"}', "{", '"', "x", "\\"]), max_size=8).map(
        "".join
    )
)
def test_no_text_breaks_the_parser(text: Any) -> None:
    message = parse_completion(text)
    opened = text.count("<tool_call>")
    assert len(message.tool_calls) + len(message.invalid_tool_calls) <= opened
    assert bool(opened) == bool(message.tool_calls or message.invalid_tool_calls)


def test_stop_strings_cut_ids_and_logprobs_alike() -> None:
    model = chat_model(seed=5, max_tokens=30)
    whole = model.invoke("Hello").response_metadata
    third = TOKENIZER.decode(whole["completion_ids"][2:3])
    cut = chat_model(seed=5, max_tokens=30).invoke("Hello", stop=[third])
    ids = cut.response_metadata["completion_ids"]
    assert ids == whole["completion_ids"][: len(ids)]
    assert len(ids) <= 3
    assert len(cut.response_metadata["logprobs"]) == len(ids)
    assert cut.response_metadata["finish_reason"] == "stop"
    assert third not in cut.content


def test_it_loads_what_was_saved_and_knows_its_weights(tmp_path: Any) -> None:
    NETWORK.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = LocalChatModel.load(tmp_path, max_tokens=8, temperature=0.0)
    same = LocalChatModel(model=NETWORK, tokenizer=TOKENIZER, max_tokens=8, temperature=0.0)
    other = LocalChatModel(model=network(1), tokenizer=TOKENIZER)
    assert loaded.model_version == same.model_version != other.model_version
    assert loaded.invoke("Hello").content == same.invoke("Hello").content
    with pytest.raises(ModelError, match="there is no folder"):
        LocalChatModel.load(tmp_path / "missing")


def test_a_tokenizer_without_a_template_and_a_forced_tool_are_refused() -> None:
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match="chat template"):
        chat_model(tokenizer=bare)
    with pytest.raises(ValueError, match="tool_choice"):
        chat_model().bind_tools([get_order], tool_choice="get_order")


def test_importing_the_module_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, cm2_agent.models.local; print(sorted({'torch', 'transformers', 'langchain_openai'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_torch_the_face_says_which_extra_to_install_and_the_other_models_import() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import cm2_agent.models.tokenizer, cm2_agent.models.batching, cm2_agent.models.chat_template\n"
        "from cm2_agent.errors import MissingExtra\n"
        "try:\n"
        "    from cm2_agent import LocalChatModel\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
        "print('transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pip = 'pip install "cm2-agent[train]"'
    assert done.stdout == f"Local chat models need an extra: {pip}\nFalse\n", done.stderr
