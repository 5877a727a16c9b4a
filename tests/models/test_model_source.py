"""Where models come from: folders at once, the hub by one request, and words for what is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cm2_agent.errors import ModelError
from cm2_agent.models import LocalChatModel
from cm2_agent.models.model_source import model_source

ERRORS = {"org/gated": (403, "GatedRepo")}
LOADS = """
import json, sys
from cm2_agent.models import LocalChatModel
said = {}
for name in sys.argv[1:]:
    try:
        said[name] = type(LocalChatModel.load(name)).__name__
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, which is gated."""

    asked: list[str]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        name = "/".join(self.path.split("/")[1:3])
        self.asked.append(self.path)
        status, code = ERRORS.get(name, (401, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Counted", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def loaded(names: list[str], endpoint: str, folder: Path, **env: str) -> dict[str, str]:
    """What loading each says, in a process for which the hub is at `endpoint`."""
    known = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *names],
        cwd=folder,
        env={**known, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "0", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, str] = json.loads(done.stdout)
    assert "Retrying" not in done.stderr
    return said


def test_a_path_that_is_not_there_is_asked_for_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    (tmp_path / "out" / "policy-1").mkdir(parents=True)
    said = loaded(["out/policy", "org/gated", "/no/such/folder", "./a/b"], endpoint, tmp_path)
    assert asked == [f"/{name}/resolve/main/adapter_config.json" for name in ("out/policy", "org/gated")]
    assert said["out/policy"].startswith(
        "ModelError: there is no folder 'out/policy' ('out' has policy-1), and no model of that name on the hub"
    )
    assert "Expected a folder with a model or a LoRA adapter, or a name on the hub" in said["out/policy"]
    assert "'org/gated' on the hub is gated" in said["org/gated"]
    for name in ("/no/such/folder", "./a/b"):
        assert said[name].startswith(f"ModelError: there is no folder {name!r} (nor ")


def test_machines_without_a_network_get_an_answer_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound and not listening: every connection is refused
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        said = loaded(["org/nope"], endpoint, tmp_path)
        assert (
            "there is no folder 'org/nope' (nor 'org'); the hub could not be asked (ConnectError)" in said["org/nope"]
        )
        assert "it is not in the cache" in said["org/nope"]
        offline = loaded(["org/nope"], endpoint, tmp_path, HF_HUB_OFFLINE="1")
        assert "it is not in the cache" in offline["org/nope"]


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file\. Expected the folder that it lies in"):
        LocalChatModel.load(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="has no folders"):
        LocalChatModel.load(tmp_path / "gone")


def test_a_folder_asks_nobody(tmp_path: Path) -> None:
    found = model_source(tmp_path)
    assert (found.name, found.adapter, found.cached) == (str(tmp_path), None, False)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert model_source(tmp_path).adapter == tmp_path
    assert model_source(found) is found
