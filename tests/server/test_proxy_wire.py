"""What the proxy sends to the server behind it, and to nobody else: redirections, encodings, keys, other APIs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason='needs the extra: pip install "cm2-agent[server]"')

from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from tests.server.running import collecting

PLAIN = Upstream(server="none")
CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KEY = {"Authorization": "Bearer sk-clients-own"}
ANSWER = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}],
}


@dataclass
class Server:
    """A server that notes requests and gives them all one answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = json.dumps(ANSWER).encode()
    url: str = ""
    came: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def answering(**answer: Any) -> Iterator[Server]:
    server = Server(**answer)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.came.append((self.command, self.path, headers, body))
            self.send_response(server.status)
            for name, value in {"Content-Type": "application/json", **server.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        do_GET = do_POST = do_DELETE = handle_any

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{listening.server_port}"
        yield server
        listening.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


@pytest.mark.parametrize("status", [301, 307])
def test_a_redirection_is_not_followed_with_the_clients_key(store: SQLStore, status: int) -> None:
    with answering() as other:
        location = {"Location": f"{other.url}{CHAT}?secret=7"}
        with answering(status=status, headers=location) as server, collecting(store, proxy_url=server.url) as proxy:
            chat = proxy.client.post(CHAT, json=ASKED, headers=KEY)
            listed = proxy.client.get("/v1/models", headers=KEY)
            proxy.flush()
    assert not other.came
    assert chat.status_code == 502
    assert f"sends chat calls on to {other.url}{CHAT};" in chat.json()["error"]["message"]
    assert "secret" not in chat.text
    assert (listed.status_code, listed.headers["location"]) == (status, location["Location"])
    assert [call.error for trace in store.traces() for call in trace.calls] == [f"HTTP {status}"]


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "text/html"])
def test_an_error_reaches_the_client_whatever_it_is_sent_as(store: SQLStore, kind: str) -> None:
    said = b'data: {"error": {"message": "busy"}}\n\n'
    failing = answering(status=503, headers={"Content-Type": kind}, body=said)
    with failing as server, collecting(store, proxy_url=server.url, upstream=PLAIN) as proxy:
        answer = proxy.client.post(CHAT, json={**ASKED, "stream": True}, headers=KEY)
        proxy.flush()
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (503, said, kind)
    assert [call.error for trace in store.traces() for call in trace.calls] == ["HTTP 503"]


def test_nobody_elses_password_is_sent(store: SQLStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp, where it trusts the environment, puts that of ~/.netrc in the place of the client's key."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password the-operators\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with answering() as server, collecting(store, proxy_url=server.url, upstream=PLAIN) as proxy:
        proxy.client.post(CHAT, json=ASKED, headers=KEY)
        proxy.client.get("/v1/models", auth=lambda request: request)  # the test's own client reads the file too
    assert [headers.get("authorization") for _, _, headers, _ in server.came] == [KEY["Authorization"], None]


def test_a_forward_proxy_of_the_environment_is_used(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as forward:
        monkeypatch.setenv("http_proxy", forward.url.replace("//", "//me:p%40ss@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with collecting(store, proxy_url="http://model.example/v1", upstream=PLAIN) as proxy:
            assert proxy.client.post(CHAT, json=ASKED, headers=KEY).status_code == 200
    ((_, path, headers, _),) = forward.came
    assert path == "http://model.example/v1/chat/completions"
    assert (headers["host"], headers["proxy-authorization"]) == ("model.example", "Basic bWU6cEBzcw==")


def test_a_body_may_be_gzip(store: SQLStore) -> None:
    small = Settings(quiet=0.0, most_unpacked=4_000)
    with answering() as server, collecting(store, small, proxy_url=server.url, upstream=PLAIN) as proxy:

        def send(body: bytes, encoding: str, path: str = CHAT) -> Any:
            headers = {**KEY, "Content-Encoding": encoding, "Content-Type": "application/json"}
            return proxy.client.post(path, content=body, headers=headers)

        body = json.dumps(ASKED).encode()
        assert send(gzip.compress(body), "gzip").json() == ANSWER
        bomb = send(gzip.compress(json.dumps({**ASKED, "user": "u" * 100_000}).encode()), "gzip")
        assert (bomb.status_code, "larger than 4000 bytes" in bomb.text) == (413, True)
        for encoding in ("zstd", "br", "deflate", "gzip, gzip"):
            refused = send(zlib.compress(body), encoding)
            assert (refused.status_code, "expected gzip, or none" in refused.text) == (415, True)
        assert send(b"no gzip", "gzip").status_code == 400
        assert send(gzip.compress(body), "gzip", "/v1/embeddings").status_code == 200
        proxy.flush()
    (chat, embeddings) = server.came
    assert json.loads(chat[3])["messages"] == ASKED["messages"]
    assert "content-encoding" not in chat[2]
    assert (embeddings[2]["content-encoding"], json.loads(gzip.decompress(embeddings[3]))) == ("gzip", ASKED)
    assert len([call for trace in store.traces() for call in trace.calls]) == 1


def test_other_apis_pass_untouched_and_are_named_as_unrecorded(store: SQLStore) -> None:
    body = b'{"input":  "Hi", "model": "m"}'
    said = b'{"object":  "response"}'
    with answering(body=said) as server, collecting(store, proxy_url=server.url, upstream=PLAIN) as proxy:
        for path in ("/v1/responses?a=1", "/v1/embeddings", "/v1/messages", "/v1/completions"):
            answer = proxy.client.post(path, content=body, headers={**KEY, "Content-Type": "application/json"})
            assert answer.content == said
        found = proxy.collector.incidents.counts
        proxy.flush()
    assert (server.came[0][1], {sent for *_, sent in server.came}) == ("/v1/responses?a=1", {body})
    named = sorted(kind.split()[2] for kind in found if "unrecorded" in kind)
    assert named == ["/v1/completions", "/v1/messages", "/v1/responses"]
    assert not list(store.traces())


def test_a_query_and_a_slash_at_the_end_go_along(store: SQLStore) -> None:
    with answering() as server, collecting(store, proxy_url=server.url, upstream=PLAIN) as proxy:
        proxy.client.post(f"{CHAT}?api-version=7", json=ASKED, headers=KEY)
        proxy.client.post(f"{CHAT}/", json=ASKED, headers=KEY)
        proxy.flush()
    assert [path for _, path, _, _ in server.came] == [f"{CHAT}?api-version=7", f"{CHAT}/"]
    assert len([call for trace in store.traces() for call in trace.calls]) == 2
    assert {headers.get("accept-encoding") for _, _, headers, _ in server.came} == {"identity"}
