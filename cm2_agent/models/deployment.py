"""`deploy`: a trained adapter into the server that answers for the agents, under the policy's own name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cm2_agent.errors import ModelError
from cm2_agent.models.endpoint_sampling import TOKEN_ID_KEYS
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.models.logprobs_mode import measure, question
from cm2_agent.models.serving_api import SERVERS, Refused, ServingAPI
from cm2_agent.models.trained_adapter import TrainedAdapter

__all__ = ["Deployment", "deploy"]

# What a server says of a folder that it cannot see: vLLM first, then SGLang, which takes the path for a hub name.
_UNSEEN = re.compile(
    r"No adapter found for|No such file or directory|Repo id must|Repository Not Found|is not a local folder"
    r"|LocalEntryNotFound|cannot find the appropriate snapshot|couldn't connect",
    re.IGNORECASE,
)
_NO_LORA = re.compile(r"LoRA is not enabled|enable[-_]lora", re.IGNORECASE)
_RANKS = (16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank, from its default on
_RANK = re.compile(r"max[-_]lora[-_]rank", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An adapter that answers at a server.

    `model` is what an app asks for and `name` the adapter's own name there (SGLang wants BASE:NAME); `version` names
    the policy, as the trainer does. `logprobs_mode` is what the server was found to take logprobs of, None where that
    could not be told, and `token_ids` whether it gives token ids. `same_prompt`: whether it made the prompt that the
    folder's tokenizer makes, None where that could not be compared; `same_folder` are other adapters that were loaded
    from this folder. `loaded` is False where it was there already;
    `replaced` was unloaded for it.

    >>> from cm2_agent.models import Deployment
    >>> names = {"url": "http://localhost:8000/v1", "server": "vllm", "base": "qwen"}
    >>> Deployment(model="v2", name="v2", version="v2", token_ids=True, logprobs_mode="processed", **names).line
    'openai_compatible("http://localhost:8000/v1", "v2", token_ids=True, model_version="v2", logprobs_mode="processed")'
    """

    url: str
    server: str
    model: str
    name: str
    version: str
    base: str
    token_ids: bool
    logprobs_mode: str | None = None
    same_prompt: bool | None = None
    same_folder: tuple[str, ...] = ()
    loaded: bool = True
    replaced: str | None = None

    @property
    def line(self) -> str:
        """The line of an app that asks for this policy."""
        settings = ["token_ids=True"] if self.token_ids else []
        settings += [f'server="{self.server}"'] if self.server != SERVERS[0] else []
        settings += [f"model_version={json.dumps(self.version)}"]
        settings += [] if self.logprobs_mode is None else [f'logprobs_mode="{self.logprobs_mode}"']
        return f"openai_compatible({json.dumps(self.url)}, {json.dumps(self.model)}, {', '.join(settings)})"

    @property
    def notes(self) -> list[str]:
        """What is wrong with it, keeps its rollouts from being trained on, and what to do."""
        notes = []
        if self.same_prompt is False:
            notes.append(
                "the server reads another prompt than the folder's tokenizer writes: its base model or its chat"
                " template is another (vLLM and SGLang take --chat-template), and the policy was not trained on such"
                " prompts"
            )
        if self.same_folder:
            notes.append(
                f"{', '.join(self.same_folder)} was loaded from the same folder: a server that drops an adapter for"
                " others reads its folder again, and would find this policy there. Unload it, and train into new"
                " folders"
            )
        if not self.token_ids:
            notes.append(
                "the server gave no token ids: its rollouts are text-only; vLLM from 0.10.2, SGLang from 0.5.23 on"
            )
        if self.logprobs_mode in (None, "raw"):
            what = "unknown" if self.logprobs_mode is None else "raw"
            notes.append(
                f"logprobs are {what}: only temperature 1 without truncation can be trained on"
                + ("; start vLLM with --logprobs-mode processed_logprobs" if self.server == "vllm" else "")
            )
        return notes


def deploy(
    folder: str | Path,
    url: str,
    *,
    name: str | None = None,
    replace: str | None = None,
    path: str | None = None,
    base: str | None = None,
    server: str | None = None,
    api_key: str | None = None,
    timeout: float = 120.0,
) -> Deployment:
    """Load a trained adapter into the vLLM or SGLang server at `url`, and see that it answers under its name.

        deployed = deploy("out/policy", "http://localhost:8000/v1", replace=last)
        print(deployed.line)  # openai_compatible(…), to be put into the app

    Args:
        folder: what LoRA training wrote: adapter_config.json and adapter_model.safetensors.
        url: the server's address, with or without `/v1`.
        name: the adapter's name at the server. Default: the policy's version, so that the rollouts of two policies
            are told apart.
        replace: an adapter that is unloaded once the new one answers. With the new one's own name it is replaced
            (on SGLang nothing answers under the name for the time of the load).
        path: where the server finds the folder, if it runs in a container or on another machine.
        base: the served base model that the adapter was trained on, where its recorded name does not say so.
        server: "vllm" or "sglang". Default: what its list of models says.
        api_key: sent as the bearer token.
        timeout: seconds for each request; loading is one.

    Returns:
        What answers there, and the line for the app.

    Raises:
        ModelError: the folder is no adapter (whole weights need a restart: the message holds the command), the server
            cannot be reached, refuses the key, has not allowed adapters, serves another base model, does not see the
            path, has something else under the name, or loads an adapter that then does not answer.

    >>> from cm2_agent.models import deploy
    >>> deploy("no-such-folder", "http://localhost:8000/v1")
    Traceback (most recent call last):
    ...
    cm2_agent.errors.ModelError: '...no-such-folder' is not there; expected the folder that LoRA training wrote, with
    adapter_config.json in it
    """
    adapter = TrainedAdapter.read(Path(folder))
    if server is not None and server not in SERVERS:
        raise ModelError(f"server {server!r}: expected {' or '.join(map(repr, SERVERS))}")
    with ServingAPI(url, api_key=api_key, timeout=timeout) as api:
        return _Deploying(api, adapter, name or adapter.version, path or str(adapter.folder), server).run(base, replace)


class _Deploying:
    """One adapter on its way into one server."""

    def __init__(self, api: ServingAPI, adapter: TrainedAdapter, name: str, path: str, server: str | None) -> None:
        self.api, self.adapter, self.name, self.path = api, adapter, name, path
        self.models = api.models()
        self.server = server or self._server()
        self.loaded = {model.id: model for model in self.models if model.parent is not None}

    def run(self, base: str | None, replace: str | None) -> Deployment:
        base = self._base(base)
        if any(model.id == self.name for model in self.models if model.parent is None):
            raise ModelError(f"{self.name!r} is the name of the server's base model; give another name")
        if replace is not None and replace not in self.loaded:
            there = ", ".join(self.loaded) or "none"
            raise ModelError(f"replace={replace!r} is no adapter at {self.api.url}; expected one of: {there}")
        fresh = not self._is_there(replace)
        if fresh:
            self._load(replace)
        model = f"{base}:{self.name}" if self.server == "sglang" else self.name
        prompt, mode = self._ask(model, undo=fresh and replace != self.name)
        if replace is not None and replace != self.name:
            self.api.unload(self.server, replace)
        return Deployment(
            url=self.api.url,
            server=self.server,
            model=model,
            name=self.name,
            version=self.adapter.version,
            base=base,
            token_ids=prompt is not None,
            logprobs_mode=mode,
            same_prompt=None if prompt is None else self.adapter.writes(question("")["messages"], prompt),
            same_folder=tuple(
                name
                for name, there in self.loaded.items()
                if there.root == self.path and name not in (self.name, replace)
            ),
            loaded=fresh,
            replaced=replace,
        )

    def _server(self) -> str:
        owners = {model.owned_by for model in self.models}
        found = [server for server in SERVERS if server in owners]
        if len(found) == 1:
            return found[0]
        raise ModelError(
            f"{self.api.url} does not say whether it is vLLM or SGLang (its models are owned by"
            f" {', '.join(sorted(str(owner) for owner in owners)) or 'nobody'}); give server (--server)"
        )

    def _base(self, given: str | None) -> str:
        """The served name of the adapter's base model."""
        served = [model for model in self.models if model.parent is None]
        if given is not None:
            if given not in {model.id for model in served}:
                there = ", ".join(model.id for model in served) or "none"
                raise ModelError(f"base={given!r} is not served at {self.api.url}; expected one of: {there}")
            return given
        # SGLang's list gives a base model's name as its root too.
        roots = [*(model.root for model in served), self.api.loaded_from() if self.server == "sglang" else None]
        known = {model.id for model in served} | {root for root in roots if root}
        if served and _is_named(self.adapter.base, known):
            return served[0].id
        raise ModelError(
            f"the adapter was trained on {self.adapter.base or 'a model without a name'!r}, and {self.api.url} serves"
            f" {', '.join(sorted(known)) or 'no base model'}: its answers would be noise. Ask the server of that base"
            " model; if it is the same model under another name, give base (--base), the name it is served under"
        )

    def _is_there(self, replace: str | None) -> bool:
        """Whether this very adapter is loaded already. Raises ModelError where its name means something else."""
        there = self.loaded.get(self.name)
        if there is None:
            return False
        same_path = there.root == self.path
        if self.name == self.adapter.version and same_path:
            return True  # the name is taken from the weights
        if replace != self.name:
            raise ModelError(
                f"{self.name!r} is loaded at {self.api.url} already, from {there.root!r}, and nobody knows whether with"
                " these weights. Leave name out (the policy's version is used), or replace it: replace="
                f"{self.name!r}"
            )
        if same_path and self.server == "vllm":
            raise ModelError(
                f"{self.name!r} was loaded from {there.root!r} before: vLLM would go on with prefixes that it cached"
                " of the old weights. Train into a new folder, or leave name out"
            )
        return False

    def _load(self, replace: str | None) -> None:
        old = self.loaded.get(self.name)
        with self._explained():
            if old is not None and self.server == "sglang":
                self.api.unload(self.server, self.name)
                try:
                    self.api.load(self.server, self.name, self.path)
                except ModelError:
                    if old.root is not None:
                        self.api.load(self.server, self.name, old.root)
                    raise
            else:
                self.api.load(self.server, self.name, self.path, in_place=old is not None, fused=self.adapter.fused)

    def _ask(self, model: str, *, undo: bool) -> tuple[list[int] | None, str | None]:
        """The prompt's token ids, None where there are none, and what logprobs are taken of; unloads an adapter that
        does not answer."""
        try:
            return self._prompt_ids(model), measure(self.api.complete, model)
        except ModelError as error:
            gone = undo and self._unloaded()
            raise ModelError(
                f"{self.name!r} is loaded at {self.api.url} and does not answer: {error}."
                + (" It was unloaded again." if gone else "")
            ) from error

    def _unloaded(self) -> bool:
        try:
            self.api.unload(self.server, self.name)
        except ModelError:  # the first error counts
            return False
        return True

    def _prompt_ids(self, model: str) -> list[int] | None:
        answer = self.api.complete({**question(model), **TOKEN_ID_KEYS[self.server]})
        named = answer.get("model")
        if named != model:
            raise ModelError(f"asked for {model!r}, the server answers as {named!r}")
        reported = ReportedTokens(ids_at_end=self.server == "sglang")
        reported.add(answer)
        return reported.prompt_ids if reported.completion_ids and reported.logprobs else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A refused load, with what to do about it."""
        try:
            yield
        except Refused as error:
            if error.status in (401, 403):
                raise
            raise ModelError(f"{error}. {self._advice(error)}") from error

    def _advice(self, error: Refused) -> str:
        rank = self.adapter.rank
        if _UNSEEN.search(error.said):
            return (
                f"The server sees no adapter at {self.path!r}: if it runs in a container or on another machine, mount"
                " or copy the folder there and give path (--path), as the server sees it"
            )
        if _RANK.search(error.said):
            return f"The adapter has rank {rank}: start the server with --max-lora-rank {_room(rank)}"
        if error.status == 404 or _NO_LORA.search(error.said):
            return f"Start the server so that it takes adapters: {_start(self.server, self._served_from(), rank)}"
        return "Does the server serve the model that the adapter was trained on, and know its target modules?"

    def _served_from(self) -> str:
        return next((model.root or model.id for model in self.models if model.parent is None), "MODEL")


def _start(server: str, base: str, rank: int) -> str:
    if server == "vllm":
        return (
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base} --enable-lora --max-lora-rank {_room(rank)}"
            " --logprobs-mode processed_logprobs"
        )
    return (
        f"python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank {_room(rank)}"
        " --lora-target-modules all"
    )


def _room(rank: int) -> int:
    return next((room for room in _RANKS if room >= rank), rank)


def _is_named(recorded: str, known: set[str]) -> bool:
    """Whether a recorded base is one of these names or paths; of a path the last part counts."""
    return bool(recorded) and (recorded in known or _last(recorded) in {_last(one) for one in known})


def _last(name: str) -> str:
    return PurePosixPath(name.rstrip("/")).name
