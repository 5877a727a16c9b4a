"""A chat model and a tool behind one HTTP server, in a process of their own: what the benchmark of runs talks to, so
that their CPU is not counted. `python -m tests.bench.stub_server MODEL_SECONDS TOOL_SECONDS` prints its port and serves
until it is killed.

The model conducts three turns of 3, 2 and 2 answers, 4 of which call the tool.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

from tests.openai_protocol import refusal, request_of

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CALLS_IN_TURN = (2, 1, 1)


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """The next answer of the script: as many calls of `look` as the turn has, then a reply."""
    messages = body["messages"]
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    turn, said = len(users) - 1, len(messages) - users[-1] - 1
    asked = said // 2
    if asked < CALLS_IN_TURN[turn % 3]:
        function = {"name": "look", "arguments": json.dumps({"key": 10 * turn + asked})}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": f"c{len(messages)}", "type": "function", "function": function}],
        }
        reason = "tool_calls"
    else:
        message, reason = (
            {"role": "assistant", "content": f"What you asked for in turn {turn} is done, and it was found."},
            "stop",
        )
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "stub",
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 20, "total_tokens": 220},
    }


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: float, tool: float) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            raw = await reader.readexactly(int(length[1])) if length else b"{}"
            body = json.loads(raw)
            status = 200
            if b" /v1/" in head.partition(b"\r\n")[0]:
                refused = refusal(*request_of(head), raw, serves=("stub",))
                await asyncio.sleep(model)
                answer: Any
                status, answer = refused if refused is not None else (200, completion(body))
            else:
                await asyncio.sleep(tool)
                answer = {"key": body.get("key"), "value": f"value {body.get('key')}", "status": "found"}
            data = json.dumps(answer).encode()
            writer.write(
                b"HTTP/1.1 %d As told\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % (status, len(data))
                + data
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client left
    finally:
        writer.close()


async def serve(model: float, tool: float) -> None:
    server = await asyncio.start_server(
        lambda r, w: connection(r, w, model, tool), "127.0.0.1", 0, limit=2**24, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
