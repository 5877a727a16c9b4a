"""OpenAI-compatible endpoints, against a real HTTP server on loopback that answers as vLLM does."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from cm2_agent.models import openai_compatible

PROMPT, COMPLETION, LOGPROBS = [1, 2, 3], [7, 8, 9], [-0.5, -0.25, -1.0]


def tokens(start: Any, end: Any) -> Any:
    return {
        "content": [
            {"token": "x", "logprob": value, "bytes": None, "top_logprobs": []} for value in LOGPROBS[start:end]
        ]
    }


class Vllm(BaseHTTPRequestHandler):
    """Keeps what it was asked; gives token ids where it was asked for them."""

    asked: list[Any] = []  # noqa: RUF012

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((body, self.headers.get("Authorization")))
        ids = bool(body.get("return_token_ids"))
        base = {"id": "c", "created": 0, "model": "served"}
        self.send_response(200)
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello there"}}
            extra = {}
            if ids:
                choice |= {"token_ids": COMPLETION, "logprobs": tokens(0, 3)}
                extra = {"prompt_token_ids": PROMPT}
            usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
            out = json.dumps(
                {**base, "object": "chat.completion", "choices": [choice], "usage": usage, **extra}
            ).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = [("Hello", 0, 1, None), (" there", 1, 3, None), ("", 3, 3, "stop")]
        for number, (text, start, end, finish) in enumerate(pieces):
            delta = {"role": "assistant", "content": text}
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            extra = {}
            if ids:
                choice |= {"token_ids": COMPLETION[start:end], "logprobs": tokens(start, end)}
                extra = {"prompt_token_ids": PROMPT} if number == 0 else {}
            chunk = {**base, "object": "chat.completion.chunk", "choices": [choice], **extra}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def address() -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vllm)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Vllm.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def check(meta: Any) -> None:
    assert (meta["prompt_ids"], meta["completion_ids"], meta["logprobs"]) == (PROMPT, COMPLETION, LOGPROBS)
    assert meta["model_name"] == "served"
    assert meta["model_version"] == "v7"
    sampling = {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "max_tokens": None, "logprobs": "raw"}
    assert meta["sampling"] == sampling
    assert meta["finish_reason"] == "stop"


def test_token_ids_and_logprobs_are_kept(address: Any) -> None:
    model = openai_compatible(address, "m", token_ids=True, model_version="v7", temperature=0.5)
    message: Any = model.invoke("Hi")
    assert message.content == "Hello there"
    check(message.response_metadata)
    assert message.usage_metadata["output_tokens"] == 3
    [(body, key)] = Vllm.asked
    assert body["return_token_ids"] is True
    assert body["logprobs"] is True
    assert key == "Bearer none"


async def test_a_streams_chunks_add_up_to_the_same(address: Any) -> None:
    model = openai_compatible(address, "m", api_key="k", token_ids=True, model_version="v7", temperature=0.5)
    whole: Any = None
    async for chunk in model.astream("Hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == "Hello there"
    check(whole.response_metadata)
    assert Vllm.asked[0][1] == "Bearer k"


def test_a_server_that_gives_no_ids_gives_text_only_messages(address: Any) -> None:
    message = openai_compatible(address, "m").invoke("Hi")
    assert message.content == "Hello there"
    assert not {"prompt_ids", "completion_ids"} & set(message.response_metadata)
    assert message.response_metadata["model_version"] == "served"
    assert "return_token_ids" not in Vllm.asked[0][0]


def test_an_unknown_kind_of_logprobs_is_refused(address: Any) -> None:
    with pytest.raises(ValueError, match="logprobs_mode"):
        openai_compatible(address, "m", logprobs_mode="cooked")


@pytest.mark.parametrize("blocked", ["torch", "langchain_openai"])
def test_it_needs_langchain_openai_and_not_torch(blocked: str) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{blocked!r}] = None\n"
        "from cm2_agent.errors import MissingExtra\n"
        "try:\n"
        "    from cm2_agent import openai_compatible\n"
        "    print(type(openai_compatible('http://localhost:1/v1', 'm')).__name__)\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    missing = 'OpenAI-compatible endpoints need an extra: pip install "cm2-agent[openai]"'
    assert done.stdout.strip() == {"torch": "EndpointChatModel", "langchain_openai": missing}[blocked], done.stderr
