"""vLLM 0.33 and SGLang 0.5.23 on loopback, as far as `deploy` and a policy behind them go: models, adapters, keys, and
chat completions of a small distribution, whole or streamed.

    with VLLM(serves="base", root="org/base") as server:
        deploy(folder, server.url)

Read in vllm/entrypoints/{openai/models/serving,serve/lora/api_router,serve/middleware/authenticate}.py and
sglang/srt/{entrypoints/http_server,entrypoints/openai/serving_base,managers/tokenizer_control_mixin}.py."""

from __future__ import annotations

import json
import math
import random
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.openai_protocol import PATH, SGLANG, STANDARD, refusal
from tests.openai_protocol import VLLM as VLLM_KEYS

WORDS = ("Hello", " there", " order", " shipped", " yes", " no", "<|im_end|>")
FIRST = 100  # the id of WORDS[0]
LOGITS = (2.0, 1.2, 0.7, 0.3, -0.5, -1.0, 0.9)
Answer = tuple[int, Any]  # a status, and a body: an object as JSON, a text as it is


class Server(ThreadingHTTPServer):
    """What both have: base models by name, adapters by name, a key. `mode` is what logprobs are taken of; `bodies` are
    the requests as they came, with their path."""

    daemon_threads = True
    owner = ""
    known: frozenset[str] = STANDARD

    def __init__(
        self,
        *,
        serves: str = "base",
        root: str = "org/base",
        api_key: str | None = None,
        max_lora_rank: int = 16,
        mode: str | None = "raw",
        answers: bool = True,
        token_ids: bool = True,
        prompt_of: Callable[[Any], list[int]] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.serves, self.base_root, self.api_key, self.max_lora_rank = serves, root, api_key, max_lora_rank
        self.mode, self.answers, self.token_ids = mode, answers, token_ids
        self.prompt_of = prompt_of or _bytes_of
        self.adapters: dict[str, str] = {}
        self.bodies: list[tuple[str, Any]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *where: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that leaves is no error
            super().handle_error(*where)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.bodies]

    def answer(self, method: str, path: str, key: str | None, body: Any) -> Answer:
        raise NotImplementedError

    def cards(self) -> Any:
        base: dict[str, Any] = {"id": self.serves, "root": self.base_root, "parent": None, "max_model_len": 4096}
        adapters: list[dict[str, Any]] = [
            {"id": name, "root": at, "parent": self.serves} for name, at in self.adapters.items()
        ]
        return {
            "object": "list",
            "data": [{"object": "model", "created": 0, "owned_by": self.owner, **card} for card in (base, *adapters)],
        }

    def fault(self, path: str) -> str | None:
        """Why an adapter is not loaded, in words that both servers use of their own."""
        try:
            config = json.loads((Path(path) / "adapter_config.json").read_text())
        except OSError:
            return "unseen"
        if config["r"] > self.max_lora_rank:
            return f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}."
        return None if (Path(path) / "adapter_model.safetensors").is_file() else "unseen"

    def completion(self, body: Mapping[str, Any], adapter: str | None, seed: int) -> dict[str, Any]:
        """A completion of at most `max_tokens` words by the distribution that the request asks for."""
        shift = 0.0 if adapter is None else 0.05 * (1 + sum(self.adapters[adapter].encode()) % 7)
        logits = [value + (shift if number % 2 else 0.0) for number, value in enumerate(LOGITS)]
        temperature, kept = body["temperature"], body.get("top_k", -1)
        scaled = [value / temperature for value in logits]
        order = sorted(range(len(WORDS)), key=lambda number: -scaled[number])[: kept if kept > 0 else None]
        shown = {
            "raw": _logprobs(dict(enumerate(logits))),
            "scaled": _logprobs(dict(enumerate(scaled))),
            "processed": dict.fromkeys(range(len(WORDS)), -9999.0)
            | _logprobs({number: scaled[number] for number in order}),
        }
        drawn = _logprobs({number: scaled[number] for number in order})
        chance, limit = random.Random(seed), body.get("max_tokens") or body.get("max_completion_tokens") or 8
        numbers: list[int] = []
        while len(numbers) < limit and (not numbers or WORDS[numbers[-1]] != "<|im_end|>"):
            numbers += chance.choices(list(drawn), [math.exp(value) for value in drawn.values()])
        entries = (
            None if self.mode is None else [_entry(n, shown[self.mode], body.get("top_logprobs")) for n in numbers]
        )
        stopped = WORDS[numbers[-1]] == "<|im_end|>"
        prompt = self.prompt_of(body["messages"])
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "".join(WORDS[n] for n in numbers[: -1 if stopped else None]),
                    },
                    "logprobs": None if entries is None else {"content": entries},
                    "finish_reason": "stop" if stopped else "length",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(numbers),
                "total_tokens": len(prompt) + len(numbers),
            },
            "prompt": prompt,
            "ids": [FIRST + n for n in numbers],
        }


class VLLM(Server):
    """`updating` is VLLM_ALLOW_RUNTIME_LORA_UPDATING: without it there are no routes for adapters."""

    owner = "vllm"
    known = STANDARD | VLLM_KEYS

    def __init__(self, *, updating: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.updating = updating

    def answer(self, method: str, path: str, key: str | None, body: Any) -> Answer:
        if path.startswith("/v1") and self.api_key is not None and key != self.api_key:
            return 401, {"error": "Unauthorized"}
        if (method, path) == ("GET", "/v1/models"):
            return 200, self.cards()
        if method == "POST" and self.updating and path == "/v1/load_lora_adapter":
            return self._load(body)
        if method == "POST" and self.updating and path == "/v1/unload_lora_adapter":
            if body["lora_name"] not in self.adapters:
                return _vllm_error(404, f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError")
            del self.adapters[body["lora_name"]]
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        return (404, {"detail": "Not Found"}) if path != PATH else self._chat(body)

    def _load(self, body: Any) -> Answer:
        name, path = body["lora_name"], body["lora_path"]
        if name == self.serves:
            return _vllm_error(
                400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput"
            )
        if name in self.adapters and not body.get("load_inplace"):
            return _vllm_error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        fault = self.fault(path)
        if fault == "unseen":
            return _vllm_error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        if fault is not None:
            return _vllm_error(500, fault, "InternalServerError")
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _chat(self, body: Any) -> Answer:
        named = body["model"]
        if named != self.serves and (named not in self.adapters or not self.answers):
            return _vllm_error(404, f"The model `{named}` does not exist.", "NotFoundError")
        made = self.completion(body, self.adapters.get(named) and named, seed=len(self.bodies))
        prompt, ids = made.pop("prompt"), made.pop("ids")
        if body.get("return_token_ids") and self.token_ids:
            made["prompt_token_ids"], made["choices"][0]["token_ids"] = prompt, ids
        return 200, made


class SGLang(Server):
    """`enabled` is --enable-lora, `admin_key` --admin-api-key. A model of another name is the base model."""

    owner = "sglang"
    known = STANDARD | SGLANG

    def __init__(self, *, enabled: bool = True, admin_key: str | None = None, **settings: Any) -> None:
        super().__init__(**{"mode": "scaled", **settings})
        self.enabled, self.admin_key = enabled, admin_key

    def answer(self, method: str, path: str, key: str | None, body: Any) -> Answer:
        wanted = self.admin_key or self.api_key if path.endswith("load_lora_adapter") else self.api_key
        if wanted is not None and key != wanted:
            return 401, {"error": "Unauthorized"}
        if (method, path) == ("GET", "/v1/models"):
            cards = self.cards()
            cards["data"][0]["root"] = self.serves  # only /model_info has the path
            return 200, cards
        if (method, path) == ("GET", "/model_info"):
            return 200, {"model_path": self.base_root, "served_model_name": self.serves}
        if (method, path) == ("POST", "/load_lora_adapter"):
            fault = self._fault(body["lora_name"], body["lora_path"])
            if fault is None:
                self.adapters[body["lora_name"]] = body["lora_path"]
            return self._updated(fault)
        if (method, path) == ("POST", "/unload_lora_adapter"):
            gone = self.adapters.pop(body["lora_name"], None)
            return self._updated(None if gone else f"LoRA with name {body['lora_name']} does not exist")
        return self._chat(body) if path == PATH else (404, {"detail": "Not Found"})

    def _fault(self, name: str, path: str) -> str | None:
        if not self.enabled:
            return "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
        if name in self.adapters:
            return f"Failed to load LoRA adapter {name} because it is already loaded"
        fault = self.fault(path)
        if fault == "unseen":
            return f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{path}'."
        return fault and (
            f"LoRA adapter {name} is incompatible with the current LoRA memory pool configuration. Please ensure that"
            " the LoRA adapter's rank is within the configured `--max-lora-rank`"
        )

    def _updated(self, fault: str | None) -> Answer:
        done = {"success": fault is None, "error_message": fault, "loaded_adapters": dict(self.adapters)}
        return 200 if fault is None else 400, done

    def _chat(self, body: Any) -> Answer:
        if body.get("stream") and body.get("return_token_ids"):
            return 400, _sglang_error("return_token_ids is not supported with streaming")
        adapter = None
        if ":" in body["model"]:
            adapter = body["model"].removeprefix(f"{self.serves}:").strip()
            if adapter not in self.adapters or not self.answers:
                return 400, _sglang_error(f"Got LoRA adapter that has never been loaded: {adapter}")
        made = self.completion(body, adapter, seed=len(self.bodies))
        prompt, ids = made.pop("prompt"), made.pop("ids")
        extension: dict[str, Any] = {}
        if body.get("return_input_ids_in_sglext") and self.token_ids:
            extension["input_ids"] = prompt
        if body.get("return_output_ids_in_sglext") and self.token_ids:
            extension["output_ids"] = [ids]
        return 200, made | ({"sglext": extension} if extension else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._do("GET")

    def do_POST(self) -> None:
        self._do("POST")

    def _do(self, method: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body: Any = json.loads(raw) if raw else None
        self.server.bodies.append((self.path, body))
        kind, _, key = (self.headers.get("Authorization") or "").partition(" ")
        status, out = self.server.answer(method, self.path, key if kind == "Bearer" else None, body)
        if status == 200 and self.path == PATH:
            headers = {"Authorization": "Bearer any"}  # the key was looked at already
            refused = refusal(method, self.path, headers, raw, serves=(body["model"],), known=self.server.known)
            status, out = refused or (status, out)
        if status == 200 and isinstance(body, dict) and body.get("stream"):
            self._send(200, "text/event-stream", _events(out, body, self.server.owner))
        elif isinstance(out, str):
            self._send(status, "text/plain", out)
        else:
            self._send(status, "application/json", json.dumps(out))

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _events(made: dict[str, Any], body: Mapping[str, Any], owner: str) -> str:
    """The same completion word by word: vLLM's ids come with their words, SGLang's at the end."""
    choice, base = (
        made["choices"][0],
        {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": made["model"]},
    )
    ids = choice.get("token_ids")
    start: dict[str, Any] = {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    chunks = [start | ({"prompt_token_ids": made["prompt_token_ids"]} if ids is not None else {})]
    entries = choice["logprobs"]["content"]
    for number, entry in enumerate(entries):
        last = number + 1 == len(entries)
        text = "" if entry["token"] == "<|im_end|>" else entry["token"]
        piece = {"index": 0, "delta": {"content": text}, "logprobs": {"content": [entry]}}
        piece |= {"finish_reason": choice["finish_reason"] if last else None}
        piece |= {} if ids is None else {"token_ids": [ids[number]]}
        chunks.append({**base, "choices": [piece]})
    if "sglext" in made:
        chunks.append({**base, "choices": [], "sglext": made["sglext"]})
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], "usage": made["usage"]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _bytes_of(messages: Any) -> list[int]:
    return [number % 64 for number in json.dumps(messages).encode()]


def _logprobs(logits: Mapping[int, float]) -> dict[int, float]:
    total = math.log(sum(math.exp(value) for value in logits.values()))
    return {number: value - total for number, value in logits.items()}


def _entry(number: int, logprobs: Mapping[int, float], top: int | None) -> dict[str, Any]:
    def one(at: int) -> dict[str, Any]:
        return {"token": WORDS[at], "logprob": logprobs[at], "bytes": list(WORDS[at].encode())}

    best = sorted(logprobs, key=lambda at: -logprobs[at])[: top or 0]
    return {**one(number), "top_logprobs": [one(at) for at in best]}


def _vllm_error(status: int, message: str, kind: str) -> Answer:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _sglang_error(message: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": 400}
