"""What vLLM and SGLang are asked beside completions: the models they list, and adapters in and out.

Read in vllm 0.33.0 (`entrypoints/openai/models/serving.py`, `entrypoints/serve/lora`) and sglang 0.5.23
(`srt/entrypoints/http_server.py`, `srt/managers/tokenizer_control_mixin.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx

from cm2_agent.errors import ModelError

__all__ = ["SERVERS", "Refused", "ServedModel", "ServingAPI"]

SERVERS = ("vllm", "sglang")
_LONGEST = 1 << 20  # bytes of an answer that are read
_SHOWN = 400  # characters of a server's own words in an error


class Refused(ModelError):
    """A server's refusal: its status, and what it said."""

    def __init__(self, message: str, *, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A line of `/v1/models`: `root` is where it was loaded from; an adapter has a `parent`."""

    id: str
    root: str | None = None
    parent: str | None = None
    owned_by: str | None = None


class ServingAPI:
    """One server. `url` with or without `/v1`; a context manager, since it keeps a connection."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ModelError(f"url {_without_secrets(url)!r}: expected the server's address, http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise ModelError("the url holds a user or a password; leave them out and give api_key")
        path = parts.path.rstrip("/").removesuffix("/v1")
        self.root = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self.url = f"{self.root}/v1"
        self._key = api_key or ""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No redirect is followed: it would carry the key elsewhere.
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def models(self) -> list[ServedModel]:
        """What is served now: base models and adapters. Raises ModelError."""
        data = self._ask("GET", "/v1/models")
        listed = data.get("data") if isinstance(data, dict) else None
        if not isinstance(listed, list):
            raise ModelError(f"{self.url}/models answered without a list of models; expected vLLM or SGLang there")
        return [
            ServedModel(id=card["id"], **{name: _text(card.get(name)) for name in ("root", "parent", "owned_by")})
            for card in listed
            if isinstance(card, dict) and isinstance(card.get("id"), str)
        ]

    def loaded_from(self) -> str | None:
        """Where SGLang loaded its base model from, which its list does not say."""
        try:
            data = self._ask("GET", "/model_info")
        except ModelError:
            return None
        return _text(data.get("model_path")) if isinstance(data, dict) else None

    def load(self, server: str, name: str, path: str, *, in_place: bool = False, fused: bool = False) -> None:
        """Load the adapter that the server finds at `path`; `fused`: it is over fused experts, of which vLLM wants to
        know. Raises Refused."""
        body: dict[str, Any] = {"lora_name": name, "lora_path": path}
        if in_place:
            body["load_inplace"] = True
        if fused and server == "vllm":
            body["is_3d_lora_weight"] = True
        self._ask("POST", _route(server, "load_lora_adapter"), body)

    def unload(self, server: str, name: str) -> None:
        """Unload an adapter by its name. Raises Refused."""
        self._ask("POST", _route(server, "unload_lora_adapter"), {"lora_name": name})

    def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """One chat completion. Raises Refused, and ModelError where it is none."""
        data = self._ask("POST", "/v1/chat/completions", body)
        if not isinstance(data, dict) or not isinstance(data.get("choices"), list) or not data["choices"]:
            raise ModelError(f"{self.url}/chat/completions answered without a choice: {_shown(data)}")
        return data

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        address = f"{self.root}{path}"
        try:
            with self._client.stream(method, address, json=body) as response:
                raw = b""
                for piece in response.iter_bytes():
                    raw += piece
                    if len(raw) > _LONGEST:
                        raise ModelError(f"{address} answered with more than {_LONGEST} bytes; is it vLLM or SGLang?")
                status, text = response.status_code, raw.decode("utf-8", "replace")
        except httpx.TimeoutException as error:
            raise ModelError(f"{address} did not answer in time; is the server still loading? Raise timeout") from error
        except httpx.HTTPError as error:
            spoken = ", and does it speak https?" if "SSL" in str(error) else "?"
            raise ModelError(f"cannot reach {address}: {error}; is the server up, the url right{spoken}") from error
        if self._key:
            text = text.replace(self._key, "[key]")  # a proxy may echo what it was sent
        data = _parsed(text)
        if status in (401, 403):
            what = "refused the key" if self._key else "wants a key and was given none"
            raise Refused(
                f"{address} {what} (status {status}); give api_key (cm2 reads CM2_MODEL_API_KEY), the key that the"
                " server was started with (SGLang's --admin-api-key, where it has one, for adapters)",
                status=status,
                said=_said(data, text),
            )
        if status != 200:
            said = _said(data, text)
            message = f"{address} refused (status {status}): {_shown(said).rstrip('.')}"
            if 300 <= status < 400:
                message += "; no redirect is followed: give the server's own address"
            elif status in (502, 503, 504):
                message += "; is the server still loading?"
            elif status == 404 and path == "/v1/models":
                message += "; expected the address of vLLM or SGLang, http://HOST:PORT/v1"
            raise Refused(message, status=status, said=said)
        return data


def _route(server: str, name: str) -> str:
    return f"/v1/{name}" if server == "vllm" else f"/{name}"


def _parsed(text: str) -> Any:
    """The body as JSON, or as it is: vLLM answers a load in plain words."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _said(data: Any, text: str) -> str:
    """A refusal's words, wherever the server has put them."""
    found = data
    if isinstance(data, dict):
        error = data.get("error")
        found = error.get("message") if isinstance(error, dict) else error
        found = found or data.get("error_message") or data.get("message") or data.get("detail")
    return found if isinstance(found, str) else text


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _without_secrets(url: str) -> str:
    return url.rpartition("@")[2]
