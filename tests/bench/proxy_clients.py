"""The streaming clients of bench_proxy, in a process of their own: raw HTTP, so that they cost little.

    python -m tests.bench.proxy_clients PORT PATH CLIENTS CALLS TOKENS ASKS    # one JSON line: tokens and seconds

`ASKS` 1: each asks for token ids and logprobs, so that the server has the same work whoever stands before it."""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def _client(port: int, path: str, calls: int, tokens: int, asks: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    asked = {"model": "m", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps({**asked, "logprobs": True, "return_token_ids": True} if asks else asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: stub\r\nAuthorization: Bearer k\r\n".encode()
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    last = f"word{tokens - 1} ".encode()
    for _ in range(calls):
        writer.write(head + body)
        status = await reader.readuntil(b"\r\n\r\n")
        assert status.split(b" ", 2)[1] == b"200", status
        whole = False
        while (size := int(await reader.readline(), 16)) > 0:
            whole = last in await reader.readexactly(size + 2) or whole
        assert whole, "an answer came without its last token"
        await reader.readline()
    writer.close()


async def main(port: int, path: str, count: int, calls: int, tokens: int, asks: int) -> None:
    began = time.monotonic()
    await asyncio.gather(*(_client(port, path, calls, tokens, bool(asks)) for _ in range(count)))
    print(json.dumps({"tokens": count * calls * tokens, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], *(int(one) for one in sys.argv[3:7])))
