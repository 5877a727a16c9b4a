"""Adapters into vLLM and SGLang on loopback: loaded, checked, replaced, refused with what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import ModelError
from cm2_agent.models import byte_tokenizer, deploy
from tests.models.lora_servers import VLLM, Server, SGLang

BOTH = pytest.mark.parametrize("kind", [VLLM, SGLang])


def adapter(folder: Path, *, base: str | None = "org/base", rank: int = 8, weights: bytes = b"one") -> Path:
    """A folder as a server reads one: what stands in the weights matters to none of these."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    version = f"{'0' * 16}+{hashlib.sha256(weights).hexdigest()[:16]}"
    (folder / "report.json").write_text(json.dumps({"policy": {"before": "0" * 16, "after": version}}))
    return folder


def refused(at: Server, folder: Path, match: str, **settings: Any) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        deploy(folder, at.url, **settings)
    return str(caught.value)


@BOTH
def test_an_adapter_answers_under_its_version(kind: type[Server], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")
    with kind(mode="processed") as server:
        done = deploy(folder, server.url.removesuffix("/v1"))
        assert server.adapters == {done.version: str(folder)}
    assert done.name == done.version
    assert done.model == (done.version if kind is VLLM else f"base:{done.version}")
    assert (done.server, done.base, done.loaded, done.replaced) == (kind.owner, "base", True, None)
    assert (done.token_ids, done.logprobs_mode, done.notes) == (True, "processed", [])
    where = "" if kind is VLLM else 'server="sglang", '
    assert done.line == (
        f'openai_compatible("{server.url}", "{done.model}", token_ids=True, {where}'
        f'model_version="{done.version}", logprobs_mode="processed")'
    )


@BOTH
def test_an_adapter_over_fused_experts(kind: type[Server], tmp_path: Path) -> None:
    """vLLM that mixes layouts of experts wants to know; peft names such tensors as target_parameters."""
    folder = adapter(tmp_path / "policy")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with kind() as server:
        deploy(folder, server.url)
        (body,) = (body for path, body in server.bodies if path.endswith("/load_lora_adapter"))
    assert body.get("is_3d_lora_weight", False) is (kind is VLLM)


@BOTH
def test_the_line_records_rollouts_of_this_policy(kind: type[Server], tmp_path: Path) -> None:
    pytest.importorskip("langchain_openai")
    from cm2_agent.models import openai_compatible

    with kind(mode="scaled" if kind is SGLang else "processed") as server:
        done = deploy(adapter(tmp_path / "policy"), server.url)
        model: Any = eval(done.line, {"openai_compatible": openai_compatible})
        for message in (model.bind(temperature=0.7).invoke("Hi"), streamed(model.bind(temperature=0.7))):
            meta = message.response_metadata
            assert meta["model_version"] == done.version
            assert (meta["sampling"]["temperature"], meta["sampling"]["logprobs"]) == (0.7, done.logprobs_mode)
            assert len(meta["completion_ids"]) == len(meta["logprobs"]) > 0
            assert meta["prompt_ids"]
            assert "untrainable" not in meta


def streamed(model: Any) -> Any:
    whole: Any = None
    for chunk in model.stream("Hi"):
        whole = chunk if whole is None else whole + chunk
    return whole


@BOTH
@pytest.mark.parametrize("mode", ["raw", "scaled", "processed"])
def test_what_logprobs_are_taken_of_is_measured(kind: type[Server], mode: str, tmp_path: Path) -> None:
    with kind(mode=mode) as server:
        done = deploy(adapter(tmp_path / "policy"), server.url)
    assert done.logprobs_mode == mode
    assert bool(done.notes) == (mode == "raw")


@BOTH
def test_a_server_without_logprobs_or_ids_is_said(kind: type[Server], tmp_path: Path) -> None:
    with kind(mode=None, token_ids=False) as server:
        done = deploy(adapter(tmp_path / "policy"), server.url)
    assert (done.token_ids, done.logprobs_mode) == (False, None)
    assert "text-only" in done.notes[0]
    assert "logprobs are unknown" in done.notes[1]
    assert "token_ids" not in done.line
    assert "logprobs_mode" not in done.line


@BOTH
def test_another_prompt_than_the_policys_own_is_said(kind: type[Server], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    folder = adapter(tmp_path / "policy")
    tokenizer.save_pretrained(folder)

    def prompt_of(messages: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    with kind(mode="processed", prompt_of=prompt_of) as server:
        done = deploy(folder, server.url)
        assert (done.same_prompt, done.notes) == (True, [])
        server.prompt_of = lambda messages: [1, *prompt_of(messages)]
        other = deploy(folder, server.url)
        assert other.same_prompt is False
        assert "reads another prompt" in other.notes[0]


@BOTH
def test_the_same_policy_again_is_no_second_load(kind: type[Server], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")
    with kind() as server:
        first, again = deploy(folder, server.url), deploy(folder, server.url)
        assert sum("load_lora_adapter" in path for path in server.paths) == 1
    assert (first.loaded, again.loaded) == (True, False)
    assert first.line == again.line


@BOTH
def test_the_next_policy_replaces_the_last(kind: type[Server], tmp_path: Path) -> None:
    with kind() as server:
        first = deploy(adapter(tmp_path / "one"), server.url)
        second = deploy(adapter(tmp_path / "two", weights=b"two"), server.url, replace=first.name)
        assert list(server.adapters) == [second.name]
        last = server.paths.index(next(path for path in server.paths if "unload" in path))
        assert last == len(server.paths) - 1, "the old one goes when the new one has answered"
    assert first.version != second.version
    assert second.replaced == first.name


@BOTH
def test_a_folder_that_was_trained_into_again_is_said(kind: type[Server], tmp_path: Path) -> None:
    """vLLM and SGLang read an adapter's folder again after they dropped it for others."""
    folder = adapter(tmp_path / "policy")
    with kind(mode="processed") as server:
        first = deploy(folder, server.url)
        shutil.rmtree(folder)
        second = deploy(adapter(folder, weights=b"two"), server.url)
        assert (second.same_folder, second.loaded) == ((first.name,), True)
        assert f"{first.name} was loaded from the same folder" in second.notes[0]
        last = deploy(folder, server.url, replace=first.name)
        assert (last.same_folder, last.notes, list(server.adapters)) == ((), [], [second.name])


@BOTH
def test_a_name_is_not_given_to_other_weights_unasked(kind: type[Server], tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", weights=b"two")
    with kind() as server:
        deploy(one, server.url, name="desk")
        refused(server, two, "'desk' is loaded .* already", name="desk")
        assert server.adapters == {"desk": str(one)}
        done = deploy(two, server.url, name="desk", replace="desk")
        assert server.adapters == {"desk": str(two)}
        assert done.version in done.line
        refused(server, two, "is the name of the server's base model", name="base")
        refused(server, two, "replace='other' is no adapter at .* expected one of: desk", replace="other")


def test_vllm_is_not_given_other_weights_on_a_path_that_it_has_cached(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one")
    with VLLM() as server:
        deploy(folder, server.url, name="desk")
        refused(server, folder, "go on with prefixes that it cached", name="desk", replace="desk")


def test_sglang_goes_on_with_the_old_policy_where_the_new_one_is_refused(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", rank=64)
    with SGLang() as server:
        deploy(one, server.url, name="desk")
        refused(server, two, "--max-lora-rank 64", name="desk", replace="desk")
        assert server.adapters == {"desk": str(one)}


@BOTH
def test_another_base_model_is_refused(kind: type[Server], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy", base="org/other")
    with kind() as server:
        text = refused(server, folder, "trained on 'org/other'")
        assert "org/base" in text
        refused(server, folder, "base='no' is not served at .* expected one of: base", base="no")
        assert not server.adapters
        assert deploy(folder, server.url, base="base").base == "base"
        refused(server, adapter(tmp_path / "unnamed", base=None), "a model without a name")


@BOTH
@pytest.mark.parametrize("base", ["org/base", "/elsewhere/base", "base", "base/"])
def test_the_base_may_lie_elsewhere(kind: type[Server], base: str, tmp_path: Path) -> None:
    with kind() as server:
        assert deploy(adapter(tmp_path / "policy", base=base), server.url).base == "base"


@BOTH
def test_a_path_that_the_server_cannot_see(kind: type[Server], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")
    with kind() as server:
        text = refused(server, folder, "sees no adapter at '/mnt/nowhere'", path="/mnt/nowhere")
        assert "mount or copy" in text
        assert deploy(folder, server.url, path=str(folder)).loaded


@BOTH
def test_rank_and_key(kind: type[Server], tmp_path: Path) -> None:
    wide, folder = adapter(tmp_path / "wide", rank=24), adapter(tmp_path / "policy")
    with kind(api_key="k1") as server:
        refused(server, folder, "was given none")
        refused(server, folder, "refused the key", api_key="k2")
        text = refused(server, wide, "rank 24: start the server with --max-lora-rank 32", api_key="k1")
        assert "k1" not in text
        done = deploy(folder, server.url, api_key="k1")
        assert "k1" not in done.line


def test_sglangs_key_for_adapters_is_another(tmp_path: Path) -> None:
    with SGLang(api_key="k1", admin_key="k2") as server:
        refused(server, adapter(tmp_path / "policy"), "--admin-api-key", api_key="k1")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VLLM(updating=False), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve org/base --enable-lora"),
        (lambda: SGLang(enabled=False), "--enable-lora --max-lora-rank 16"),
    ],
)
def test_a_server_that_takes_no_adapters(make: Callable[[], Server], words: str, tmp_path: Path) -> None:
    with make() as server:
        refused(server, adapter(tmp_path / "policy"), words)


@BOTH
def test_an_adapter_that_does_not_answer_is_unloaded_again(kind: type[Server], tmp_path: Path) -> None:
    with kind(answers=False) as server:
        refused(server, adapter(tmp_path / "policy"), "does not answer: .* It was unloaded again")
        assert not server.adapters


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    whole, pickled, odd = tmp_path / "whole", adapter(tmp_path / "pickled"), adapter(tmp_path / "odd")
    whole.mkdir()
    (whole / "config.json").write_text("{}")
    (whole / "report.json").write_text('{"policy": {"after": "0123456789abcdef"}}')
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    (odd / "adapter_config.json").write_text("[]")
    with VLLM() as server:
        text = refused(server, whole, "whole weights")
        assert f"vllm serve {whole} --served-model-name 0123456789abcdef" in text
        refused(server, pickled, "a pickle is not deployed")
        refused(server, odd, "no configuration of a LoRA adapter")
        refused(server, tmp_path / "nothing", "is not there; expected the folder")
        assert not server.paths


def test_servers_that_cannot_be_asked(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "policy")
    with VLLM() as server:
        server.owner = "somebody"
        refused(server, folder, "owned by somebody.*give server")
        assert deploy(folder, server.url, server="vllm").loaded
        refused(server, folder, "server 'tgi': expected 'vllm' or 'sglang'", server="tgi")
        away = server.url
    with pytest.raises(ModelError, match="cannot reach"):
        deploy(folder, away)
    for url in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(ModelError, match="expected the server's address"):
            deploy(folder, url)
    with pytest.raises(ModelError, match="holds a user or a password") as caught:
        deploy(folder, "http://me:secret@localhost/v1")
    assert "secret" not in str(caught.value)
