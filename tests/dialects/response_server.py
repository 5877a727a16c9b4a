"""A server on loopback that speaks OpenAI's Responses API and plays the dialogue of the order desk, whole or streamed;
it keeps what `previous_response_id` and `conversation` go on with, and refuses what the real one would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai.types.responses.response_create_params import ResponseCreateParamsBase

from tests.dialects.order_server import ANSWERS, MODEL, TOOLS

KNOWN = frozenset(ResponseCreateParamsBase.__annotations__) | {"stream"}
RESPONSE_TOOLS: list[Any] = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


class ResponseServer(ThreadingHTTPServer):
    """Serves the model "desk"; `asked` are the requests, `kept` the items up to each response and of conversations."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Any] = []
        self.kept: dict[str, list[Any]] = {"conv_1": []}
        self.changes: dict[str, Any] = {}
        """What the next response has in place of what it would have."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def response(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises ValueError with the words of a refusal."""
        if unknown := sorted(set(body) - KNOWN):
            raise ValueError(f"Unknown parameter: '{unknown[0]}'.")
        if body.get("model") != MODEL:
            raise ValueError(f"The requested model '{body.get('model')}' does not exist.")
        if any(
            tool.get("type") == "function" and not isinstance(tool.get("name"), str) for tool in body.get("tools") or ()
        ):
            raise ValueError("Missing required parameter: 'tools[0].name'.")
        given = body.get("input")
        new = [{"role": "user", "content": given}] if isinstance(given, str) else given
        before = body.get("previous_response_id") or body.get("conversation")
        if before is not None and before not in self.kept:
            raise ValueError(f"Previous response with id '{before}' not found.")
        items = [*self.kept.get(before or "", ()), *(new or ())]
        _check(items)
        identity = f"resp_{len(self.asked)}"
        output = self.changes.pop("output", None) or _output(_answers(items), identity)
        self.kept[identity] = [*items, *output]
        if body.get("conversation"):
            self.kept[body["conversation"]] = self.kept[identity]
        usage = {"input_tokens": len(items), "output_tokens": 5, "total_tokens": len(items) + 5}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        whole = {"id": identity, "object": "response", "created_at": 1_700_000_000, "model": MODEL, "output": output}
        rest: dict[str, Any] = {
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "tools": [],
            "tool_choice": "auto",
        }
        changes, self.changes = self.changes, {}
        return {**whole, **rest, "parallel_tool_calls": True, "usage": {**usage, **details}, **changes}


def _check(items: list[Any]) -> None:
    waiting: set[str] = set()
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "function_call":
            if not all(isinstance(item.get(name), str) for name in ("call_id", "name", "arguments")):
                raise ValueError(f"Missing required parameter: 'input[{number}].call_id'.")
            waiting.add(item["call_id"])
        elif kind == "function_call_output":
            if item.get("call_id") not in waiting:
                raise ValueError(f"No tool call found for function call output with call_id {item.get('call_id')}.")
            waiting.remove(item["call_id"])
        elif kind == "message" and item.get("role") not in ("user", "assistant", "system", "developer"):
            raise ValueError(f"Invalid value: '{item.get('role')}'.")
    if waiting:
        raise ValueError(f"No tool output found for function call {min(waiting)}.")


def _answers(items: list[Any]) -> int:
    """How many answers of the model are among the items: calls in a row are one."""
    kinds = ["call" if item.get("type") == "function_call" else str(item.get("role")) for item in items]
    return sum(kind == "assistant" for kind in kinds) + sum(
        kind == "call" and (place == 0 or kinds[place - 1] != "call") for place, kind in enumerate(kinds)
    )


def _output(number: int, identity: str) -> list[dict[str, Any]]:
    answer = ANSWERS[number]
    found: list[dict[str, Any]] = []
    if answer["content"]:
        text = {"type": "output_text", "text": answer["content"], "annotations": []}
        found.append(
            {"type": "message", "id": f"msg_{identity}", "role": "assistant", "status": "completed", "content": [text]}
        )
    for call in answer.get("tool_calls") or ():
        item = {"type": "function_call", "id": f"fc_{call['id']}", "status": "completed", **call["function"]}
        found.append({**item, "call_id": call["id"]})
    return found


def _events(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}}
    for place, item in enumerate(response["output"]):
        at = {"output_index": place, "item_id": item["id"]}
        key = "arguments" if item["type"] == "function_call" else "content"
        begun = {**item, key: "" if key == "arguments" else [], "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": place, "item": begun}
        if key == "arguments":
            for text in (item["arguments"][:5], item["arguments"][5:]):
                yield {"type": "response.function_call_arguments.delta", **at, "delta": text}
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
        else:
            part = {"type": "output_text", "text": "", "annotations": []}
            yield {"type": "response.content_part.added", **at, "content_index": 0, "part": part}
            for word in item["content"][0]["text"].split(" "):
                yield {
                    "type": "response.output_text.delta",
                    **at,
                    "content_index": 0,
                    "delta": f"{word} ",
                    "logprobs": [],
                }
        yield {"type": "response.output_item.done", "output_index": place, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


class _Handler(BaseHTTPRequestHandler):
    server: ResponseServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/responses":
            self._whole(404, {"error": {"message": f"Invalid URL (POST {self.path})"}})
        elif not (self.headers.get("Authorization") or "").startswith("Bearer "):
            self._whole(401, {"error": {"message": "You didn't provide an API key"}})
        else:
            try:
                response = self.server.response(body)
            except ValueError as error:
                self._whole(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
                return
            self.server.asked.append(body)
            if body.get("stream"):
                self._stream(response)
            else:
                self._whole(200, response)

    def _whole(self, status: int, body: Mapping[str, Any]) -> None:
        out = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def _stream(self, response: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, event in enumerate(_events(response)):
            data = json.dumps({**event, "sequence_number": number})
            self.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())


@contextmanager
def responding() -> Iterator[ResponseServer]:
    """A server, until the block ends."""
    server = ResponseServer()
    yield server
    server.shutdown()
    server.server_close()
