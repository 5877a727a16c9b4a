"""What the proxy costs: 32 clients stream from a stub of vLLM directly and through `cm2 serve --proxy`.

    python -m tests.bench.bench_proxy             # one JSON line; a minute

Stub, proxy and clients are processes of their own. The stub is bound by its CPU: it makes each chunk anew, with token
id and logprob. `ratio` is the share of the direct throughput that is left, the median of alternating rounds, `cpu_ms`
the proxy's CPU for a call of one chunk, all of it: what comes before the first byte is a part of that. Where other
programs keep the cores busy the ratio is theirs; `cpu_us_a_chunk`, the CPU of proxy and stub, is not.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil

from tests.server.crashing import Process

CLIENTS, CHUNKS, CALLS, ROUNDS = 32, 64, 6, 5
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


# The stub


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"{}")
            if b"/models" in head.partition(b"\r\n")[0]:
                data = json.dumps({"data": [{"id": "m", "owned_by": "vllm"}]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ")
                writer.write(str(len(data)).encode() + b"\r\n\r\n" + data)
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            count = int(body.get("max_tokens") or CHUNKS)
            for number in range(count):
                _write(writer, _chunk(number, count, body))
                await writer.drain()
                await asyncio.sleep(0)
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
                _write(writer, {"id": "c", "created": 1, "model": "m", "choices": [], "usage": usage})
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _chunk(number: int, count: int, body: dict[str, Any]) -> dict[str, Any]:
    last = number == count - 1
    delta = {"role": "assistant", "content": f"word{number} "}
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None, "logprobs": None}
    chunk: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if body.get("logprobs"):
        entry = {"token": delta["content"], "logprob": -0.5, "bytes": list(delta["content"].encode())}
        choice["logprobs"] = {"content": [{**entry, "top_logprobs": []}]}
    if body.get("return_token_ids"):
        choice["token_ids"] = [number]
        if number == 0:
            chunk["prompt_token_ids"] = [1, 2, 3]
    return {**chunk, "choices": [choice]}


def _write(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def stub() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The clients


async def _client(port: int, calls: int, tokens: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    asked = {"model": "m", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hi"}]}
    asked |= {"logprobs": True, "return_token_ids": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: stub\r\nAuthorization: Bearer k\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    done = 0
    for _ in range(calls):
        writer.write(head + body)
        await reader.readuntil(b"\r\n\r\n")
        while (size := int(await reader.readline(), 16)) > 0:
            done += (await reader.readexactly(size + 2)).count(b"data: {")
        await reader.readline()
    writer.close()
    return done


async def clients(port: int, count: int, calls: int, tokens: int) -> None:
    began = time.monotonic()
    chunks = sum(await asyncio.gather(*(_client(port, calls, tokens) for _ in range(count))))
    print(json.dumps({"chunks": chunks, "seconds": time.monotonic() - began}), flush=True)


def _load(port: int, count: int = CLIENTS, calls: int = CALLS, tokens: int = CHUNKS) -> dict[str, float]:
    arguments = [str(one) for one in (port, count, calls, tokens)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_proxy", "clients", *arguments], capture_output=True, check=True
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    upstream = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bench_proxy", "stub"], stdout=subprocess.PIPE, text=True
    )
    assert upstream.stdout is not None
    direct = int(upstream.stdout.readline())
    with tempfile.TemporaryDirectory() as folder:
        options = ("--proxy", f"http://127.0.0.1:{direct}/v1", "--quiet", "1")
        proxy = Process(f"sqlite:///{folder}/cm2.db", *options)
        port = int(proxy.address.rpartition(":")[2])
        process = psutil.Process(proxy.process.pid)
        try:
            _load(port)  # what is imported or connected once
            rounds = [(_rate(_load(direct)), _rate(_load(port))) for _ in range(ROUNDS)]
            own, behind = _cpu(process), _cpu(psutil.Process(upstream.pid))
            chunks = _load(port)["chunks"]
            own, behind = _cpu(process) - own, _cpu(psutil.Process(upstream.pid)) - behind
            time.sleep(5)  # what was recorded is stored meanwhile
            began = _cpu(process)
            _load(port, 1, 400, 1)
            cpu = (_cpu(process) - began) / 400
        finally:
            proxy.stop()
            upstream.kill()
    ratios = sorted(through / plain for plain, through in rounds)
    result = {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
        "direct_chunks_a_second": round(statistics.median(plain for plain, _ in rounds)),
        "cpu_ms": round(1000 * cpu, 2),
        "cpu_us_a_chunk": {"proxy": round(1e6 * own / chunks, 1), "stub": round(1e6 * behind / chunks, 1)},
        "clients": CLIENTS,
    }
    print(json.dumps(result))


def _rate(found: dict[str, float]) -> float:
    return found["chunks"] / found["seconds"]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    if sys.argv[1:2] == ["stub"]:
        asyncio.run(stub())
    elif sys.argv[1:2] == ["clients"]:
        asyncio.run(clients(*(int(one) for one in sys.argv[2:])))
    else:
        main()
