"""What tells that a tool call failed: the answer's mark, or its words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from cm2_agent.types.messages import ToolCall, ToolCallResponse
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN, is_error, reads_as_error
from cm2_agent.types.tool_use import ToolUse
from tests.strategies import jsons


@pytest.mark.parametrize(
    "answer",
    [
        "Error: no such order",
        "error: timeout",
        "  ERROR 404: not found",
        "[ERROR] not found",
        "❌ Error: not found",
        "Tool error - the desk is closed",
        "Error",
        "Error executing tool get_order: 7",
        "Error invoking tool 'get_order' with kwargs {}",
        "ValueError: 7 is no order",
        "httpx.ConnectTimeout.TimeoutError('x')",
        "openai.APIError: down",
        "Exception: down",
        "Traceback (most recent call last):\n  File …",
        "Unknown action get_ordr",
        "<tool_use_error>x</tool_use_error>",
        '{"error": "not allowed"}',
        '{"error": {"code": 404}}',
        '{"isError": true, "content": []}',
        '{"success": false, "message": "no"}',
        '{"status": "error"}',
        '{"status": "failed"}',
        '{"status": "FAILED", "message": "no such order", "code": 17}',
        '{"status": "failure", "order": null}',
        '{"status": 404, "title": "Not Found", "detail": "no such order"}',
        '{"statusCode": 500}',
        '{"ok": false}',
        '{"ok": false, "order_id": 7}',
        '{"success": "false"}',
        '{"failed": true, "reason": "closed"}',
        '{"errors": [{"message": "no such field"}], "data": null}',
        {"error": "not allowed"},
        {"is_error": True},
        [{"type": "text", "text": "Error: no such order"}],
        "Error code: 404 - {'error': 'no such order'}",
        "Error(404)",
        "Error\nno such order",
        "<error>no such order</error>",
        "{'error': 'no such order'}",
        '{"Error": {"Code": "NoSuchKey"}}',
        "404 Not Found",
        "404 Client Error: Not Found for url: https://example.com",
        "HTTP 500 Internal Server Error",
        "HTTP/1.1 503",
        "Unauthorized",
        "Forbidden: no key",
        "Permission denied",
        "Timed out.",
        "Connection refused",
        "Failed: no such order",
        "Failed to fetch the order",
        "Tool get_ordr not found",
        "get_ordr is not a valid tool, try one of [get_order].",
        "Fehler: nicht gefunden",
        "Erreur : introuvable",
        "错误：没有订单",
        '{"code": 500, "message": "down"}',
        '{"detail": "Not Found"}',
    ],
)
def test_answers_that_say_that_they_are_errors(answer: Any) -> None:
    assert reads_as_error(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "shipped",
        "",
        None,
        7,
        "Error handling in Python, a guide",
        "Errors: 0",
        "Error code: E12 is cleared by a restart",
        "Failed: 0, passed: 12",
        "Failed payments: 3",
        "Failed to deliver on 2026-05-20, nobody at home",
        "not found",
        "Conflict",
        "Forbidden City, open until 17:00",
        "404 Main Street",
        "Timed out of the game: 3 players",
        "Permission denied requests: 3",
        "{'error': None, 'arrives': '2026-05-20'}",
        '{"code": 500, "amount": 30}',
        '{"code": 17, "message": "shipped"}',
        '{"detail": "two parcels"}',
        "Terror: a film",
        "The error was mended",
        "Mirror: 30 EUR",
        '{"error": null, "arrives": "2026-05-20"}',
        '{"error": "", "arrives": "2026-05-20"}',
        '{"error": "none"}',
        '{"status": "failed", "payment": 7}',
        '{"status": "failed", "payment": null, "amount": 30}',
        '{"status": 404, "order": "404 Main Street"}',
        '{"status": 200, "message": "shipped"}',
        '{"status": "rejected", "reason": "too late"}',
        '{"valid": false, "errors": ["too short"]}',
        '{"errors": [], "passed": 12}',
        '{"failed": 2, "passed": 10}',
        '{"failed": true, "order_id": 7}',
        '{"ok": true}',
        '{"ok": null, "status": "shipped"}',
        '{"orders": [{"error": "late"}]}',
        '{"error": ',
        {"error": False},
        {"errors": []},
        [{"error": "not the answer itself"}],
    ],
)
def test_answers_that_are_none(answer: Any) -> None:
    assert not reads_as_error(answer)


@given(jsons())
def test_any_answer_can_be_asked_and_json_text_reads_as_its_object(value: Any) -> None:
    if isinstance(value, dict):
        assert reads_as_error(json.dumps(value)) == reads_as_error(value)
    assert reads_as_error(value) in (True, False)


def test_deep_nesting_is_no_error_and_no_crash() -> None:
    assert not reads_as_error('{"error": ' + "[" * 40_000)


CALL = ToolCall(id="1", name="get_order", arguments={"order_id": 7})


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (ToolCallResponse(id="1", response="shipped"), "ok"),
        (ToolCallResponse(id="1", response="shipped", error=True), "failed"),
        (ToolCallResponse(id="1", response="Error: no such order"), "failed"),
        (ToolCallResponse(id="1", response="shipped", extra={FAILURE_UNKNOWN: True}), "answered"),
        (ToolCallResponse(id="1", response='{"error": "x"}', extra={FAILURE_UNKNOWN: True}), "failed"),
    ],
)
def test_the_status_follows(response: ToolCallResponse, status: str) -> None:
    assert ToolUse(call=CALL, response=response).status == status
    assert is_error(response) is (status == "failed")
    if not response.error:  # a node of the application's own may have run it
        assert ToolUse(call=CALL, response=response, recorded=True).status == status
