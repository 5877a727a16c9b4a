"""One dialogue as other tools write it: question, call, answer, reply, each shape by the public documentation of its
tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cm2_agent.importers import Imported, Problem, read_recordings

SYSTEM, QUESTION, REPLY = "Be kind.", "When does order A7 come?", "On Friday."
ARGUMENTS: dict[str, Any] = {"order_id": "A7", "deep": {"b": 1, "a": [1, 2]}}
RESULT = "due on Friday"
SCHEMA = {"type": "object", "properties": {"order_id": {"type": "string"}}}


def _function(arguments: Any = None) -> dict[str, Any]:
    text = json.dumps(ARGUMENTS if arguments is None else arguments)
    return {"id": "call_1", "type": "function", "function": {"name": "get_order", "arguments": text}}


def openai() -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": None, "tool_calls": [_function()]},
            {"role": "tool", "tool_call_id": "call_1", "content": RESULT},
            {"role": "assistant", "content": REPLY},
        ],
        "tools": [{"type": "function", "function": {"name": "get_order", "parameters": SCHEMA}}],
    }


def anthropic() -> dict[str, Any]:
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_order", "input": ARGUMENTS}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": RESULT}]}
    return {
        "model": "claude",
        "system": SYSTEM,
        "tools": [{"name": "get_order", "input_schema": SCHEMA}],
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": [{"type": "text", "text": REPLY}]},
        ],
    }


def responses() -> dict[str, Any]:
    return {
        "messages": [
            {"role": "developer", "content": SYSTEM},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "c",
                "name": "get_order",
                "arguments": json.dumps(ARGUMENTS),
            },
            {"type": "function_call_output", "call_id": "c", "output": RESULT, "status": "completed"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": REPLY}]},
        ],
        "tools": [{"type": "function", "name": "get_order", "parameters": SCHEMA}],
    }


def langchain_dump() -> dict[str, Any]:
    def constructor(name: str, **kwargs: Any) -> dict[str, Any]:
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": kwargs}

    call = {"name": "get_order", "args": ARGUMENTS, "id": "x", "type": "tool_call"}
    return {
        "messages": [
            constructor("SystemMessage", content=SYSTEM, type="system"),
            constructor("HumanMessage", content=QUESTION, type="human"),
            constructor("AIMessage", content="", tool_calls=[call], type="ai"),
            constructor("ToolMessage", content=RESULT, tool_call_id="x", status="success", type="tool"),
            constructor("AIMessageChunk", content=REPLY, type="AIMessageChunk"),
        ]
    }


def langchain_dicts() -> list[dict[str, Any]]:
    call = {"name": "get_order", "args": ARGUMENTS, "id": "x", "type": "tool_call"}
    block = {"type": "tool_use", "id": "x", "name": "get_order", "input": ARGUMENTS}
    return [
        {"type": "system", "data": {"content": SYSTEM, "type": "system"}},
        {"type": "human", "data": {"content": QUESTION, "type": "human"}},
        {"type": "ai", "data": {"content": [block], "tool_calls": [call], "type": "ai"}},
        {"type": "tool", "data": {"content": RESULT, "tool_call_id": "x", "status": "success", "type": "tool"}},
        {"type": "ai", "data": {"content": REPLY, "type": "ai"}},
    ]


def pydantic_ai() -> list[dict[str, Any]]:
    return [
        {
            "kind": "request",
            "parts": [
                {"part_kind": "system-prompt", "content": SYSTEM, "timestamp": "2026-01-01T00:00:00Z"},
                {"part_kind": "user-prompt", "content": QUESTION, "timestamp": "2026-01-01T00:00:00Z"},
            ],
        },
        {
            "kind": "response",
            "model_name": "m",
            "parts": [
                {"part_kind": "tool-call", "tool_name": "get_order", "args": json.dumps(ARGUMENTS), "tool_call_id": "p"}
            ],
        },
        {
            "kind": "request",
            "parts": [{"part_kind": "tool-return", "tool_name": "get_order", "content": RESULT, "tool_call_id": "p"}],
        },
        {"kind": "response", "parts": [{"part_kind": "text", "content": REPLY}]},
    ]


def sharegpt() -> dict[str, Any]:
    return {
        "system": SYSTEM,
        "tools": json.dumps([{"name": "get_order", "parameters": SCHEMA}]),
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "function_call", "value": json.dumps({"name": "get_order", "arguments": ARGUMENTS})},
            {"from": "observation", "value": RESULT},
            {"from": "gpt", "value": REPLY},
        ],
    }


def hermes() -> dict[str, Any]:
    call = json.dumps({"name": "get_order", "arguments": ARGUMENTS})
    return {
        "conversations": [
            {"from": "system", "value": SYSTEM},
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": f"<tool_call>\n{call}\n</tool_call>"},
            {"from": "tool", "value": f"<tool_response>\n{RESULT}\n</tool_response>"},
            {"from": "gpt", "value": REPLY},
        ]
    }


def genai() -> dict[str, Any]:
    def message(role: str, **part: Any) -> dict[str, Any]:
        return {"role": role, "parts": [part]}

    return {
        "messages": [
            message("system", type="text", content=SYSTEM),
            message("user", type="text", content=QUESTION),
            message("assistant", type="tool_call", id="g", name="get_order", arguments=ARGUMENTS),
            message("tool", type="tool_call_response", id="g", response=RESULT),
            message("assistant", type="text", content=REPLY),
        ]
    }


def gemini() -> list[dict[str, Any]]:
    return [
        {"role": "system", "parts": [{"text": SYSTEM}]},
        {"role": "user", "parts": [{"text": QUESTION}]},
        {"role": "model", "parts": [{"functionCall": {"name": "get_order", "args": ARGUMENTS}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "get_order", "response": RESULT}}]},
        {"role": "model", "parts": [{"text": REPLY}]},
    ]


def stored() -> dict[str, Any]:
    messages = openai()["messages"]
    return {"input": messages[:-1], "output": messages[-1:]}


def gateway() -> dict[str, Any]:
    """A log of a gateway: the request's body and the response's."""
    messages = openai()["messages"]
    return {"request": {"model": "m", "messages": messages[:-1]}, "response": {"choices": [{"message": messages[-1]}]}}


def response_object() -> dict[str, Any]:
    items = responses()["messages"]
    return {
        "object": "response",
        "model": "m",
        "instructions": SYSTEM,
        "input": items[1:-1],
        "output": [items[-1]],
    }


def inspect() -> dict[str, Any]:
    return {
        "version": 2,
        "status": "success",
        "eval": {"run_id": "r", "task": "orders", "model": "m"},
        "samples": [
            {
                "id": 1,
                "epoch": 1,
                "input": QUESTION,
                "target": "Friday",
                "scores": {"includes": {"value": "C", "answer": REPLY}},
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": QUESTION, "source": "input"},
                    {
                        "role": "assistant",
                        "content": "",
                        "source": "generate",
                        "tool_calls": [
                            {"id": "i", "function": "get_order", "arguments": ARGUMENTS, "type": "function"}
                        ],
                    },
                    {"role": "tool", "content": RESULT, "tool_call_id": "i", "function": "get_order"},
                    {"role": "assistant", "content": [{"type": "text", "text": REPLY}]},
                ],
            }
        ],
    }


def tau2() -> dict[str, Any]:
    call = {"id": "1", "name": "get_order", "arguments": ARGUMENTS, "requestor": "assistant"}
    return {
        "timestamp": "2026-01-01",
        "info": {
            "environment_info": {"domain_name": "shop", "policy": SYSTEM},
            "agent_info": {"implementation": "llm_agent", "llm": "m"},
        },
        "tasks": [
            {
                "id": "t1",
                "user_scenario": {"persona": None, "instructions": "Ask for A7."},
                "evaluation_criteria": {"actions": []},
            }
        ],
        "simulations": [
            {
                "id": "s1",
                "task_id": "t1",
                "trial": 0,
                "termination_reason": "user_stop",
                "reward_info": {"reward": 1.0},
                "messages": [
                    {"role": "user", "content": QUESTION, "tool_calls": None},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "id": "1", "content": RESULT, "requestor": "assistant", "error": False},
                    {"role": "assistant", "content": REPLY, "tool_calls": None},
                ],
            }
        ],
    }


def swe_agent() -> dict[str, Any]:
    def item(role: str, content: Any, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, "agent": "main", **more}

    return {
        "environment": "swe_main",
        "trajectory": [{"action": "", "observation": RESULT, "response": ""}],
        "history": [
            item("system", SYSTEM, message_type="system_prompt"),
            item("user", QUESTION, message_type="observation"),
            item("assistant", "", message_type="action", tool_calls=[_function()]),
            item("tool", RESULT, message_type="observation", tool_call_ids=["call_1"]),
            item("assistant", REPLY, message_type="action"),
        ],
        "info": {"exit_status": "submitted"},
    }


def model_messages() -> list[dict[str, Any]]:
    call = {"type": "tool-call", "toolCallId": "call_1", "toolName": "get_order", "input": ARGUMENTS}
    output = {"type": "text", "value": RESULT}
    result = {"type": "tool-result", "toolCallId": "call_1", "toolName": "get_order", "output": output}
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [call]},
        {"role": "tool", "content": [result]},
        {"role": "assistant", "content": [{"type": "text", "text": REPLY}]},
    ]


def interface_messages() -> list[dict[str, Any]]:
    call = {"type": "tool-get_order", "toolCallId": "call_1", "state": "output-available"}
    parts = [{**call, "input": ARGUMENTS, "output": RESULT}, {"type": "text", "text": REPLY, "state": "done"}]
    return [
        {"id": "0", "role": "system", "parts": [{"type": "text", "text": SYSTEM}]},
        {"id": "1", "role": "user", "parts": [{"type": "text", "text": QUESTION}]},
        {"id": "2", "role": "assistant", "parts": [{"type": "step-start"}, *parts]},
    ]


def invocations() -> list[dict[str, Any]]:
    call = {"state": "result", "toolCallId": "call_1", "toolName": "get_order", "args": ARGUMENTS, "result": RESULT}
    system = {"id": "0", "role": "system", "content": SYSTEM}
    asked = {"id": "1", "role": "user", "content": QUESTION}
    return [system, asked, {"id": "2", "role": "assistant", "content": REPLY, "toolInvocations": [call]}]


WHOLE = {
    "ai-sdk": model_messages,
    "ai-sdk (interface)": interface_messages,
    "ai-sdk (version 4)": invocations,
    "openai": openai,
    "anthropic": anthropic,
    "openai-responses": responses,
    "langchain": langchain_dump,
    "langchain (dicts)": langchain_dicts,
    "pydantic-ai": pydantic_ai,
    "sharegpt": sharegpt,
    "sharegpt (Hermes)": hermes,
    "genai": genai,
    "gemini": gemini,
    "openai-stored": stored,
    "openai-stored (gateway)": gateway,
    "openai-stored (response)": response_object,
    "inspect": inspect,
    "tau2": tau2,
    "swe-agent": swe_agent,
}
"""The shapes that carry all of the dialogue, by their format."""


def written(folder: Path, *records: Any, name: str = "file.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(one) for one in records), encoding="utf-8")
    return path


def read(path: Path, format: str | None = None, **options: Any) -> list[Imported]:
    found = list(read_recordings(format, path, **options))
    assert not [str(one) for one in found if isinstance(one, Problem)]
    return [one for one in found if isinstance(one, Imported)]


def only(folder: Path, record: Any, **options: Any) -> Imported:
    (found,) = read(written(folder, record), **options)
    return found
