"""Other proxies of a chat API for bench_proxy, each installed from the package index into an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Peer", "started"]

_CHAT = "/v1/chat/completions"
_START = 120.0
_MODEL = {"model": "hosted_vllm/m", "api_key": "k"}
# LiteLLM keeps no key on loopback then, which spares it the check of one, and asks no server for prices.
_LITELLM = {
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
_AGENT_LIGHTNING = """
import asyncio, json, sys
from agentlightning import InMemoryLightningStore, LLMProxy
async def main():
    models = json.loads(sys.argv[2])["model_list"]
    store = InMemoryLightningStore()
    proxy = LLMProxy(port=int(sys.argv[1]), host="127.0.0.1", model_list=models, store=store, launch_mode="asyncio")
    await proxy.start()
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A proxy: `command` follows its environment's folder of programs, with PORT and CONFIG (JSON, in a file where the
    argument is FILE) in it; `note` says what about it is not the same."""

    name: str
    requirement: str
    command: Sequence[str]
    path: str = _CHAT
    note: str | None = None


PEERS = (
    Peer(
        name="litellm",
        requirement="litellm[proxy]",
        command=("litellm", "--config", "FILE", "--port", "PORT", "--host", "127.0.0.1", "--telemetry", "False"),
    ),
    Peer(
        name="agent-lightning",
        requirement="agentlightning",
        command=("python", "-c", _AGENT_LIGHTNING, "PORT", "CONFIG"),
        path=f"/rollout/r1/attempt/a1{_CHAT}",
        note="asks the server for whole answers, and makes streams of them",
    ),
)


@contextmanager
def started(peer: Peer, folder: Path, upstream: int) -> Iterator[tuple[int, int]]:
    """The peer in front of the server at a port: its own port and process. Raises OSError where it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    model = {"model_name": "m", "litellm_params": {**_MODEL, "api_base": f"http://127.0.0.1:{upstream}/v1"}}
    config = json.dumps({"model_list": [model]})  # JSON is YAML too
    file = folder / f"{peer.name}.yaml"
    file.write_text(config)
    words = {"PORT": str(port), "CONFIG": config, "FILE": str(file)}
    program, *arguments = [words.get(word, word) for word in peer.command]
    log = folder / f"{peer.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(folder / peer.name / "bin" / program), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_LITELLM},
        )
    try:
        _wait(peer, port, process, log)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(peer: Peer, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a call is answered."""
    body = {"model": "m", "stream": True, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    deadline = time.monotonic() + _START
    while True:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{peer.path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = (log.read_text().strip() or str(error)).splitlines()[-1]
                raise OSError(f"does not answer: {last[:200]}") from error
        time.sleep(1)
