"""The ordinary run of the small agent, which the tests of the handler vary: its graph, its span tree and its Run."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage

from cm2_agent.types.run import Run
from tests.tracing.apps import ScriptedModel, agent, calls
from tests.tracing.conftest import Watched

QUESTION: Any = {"messages": [("user", "what are 1 and 2?")]}
SCRIPT = [calls(1, 2), AIMessage(content="they are value 1 and value 2")]
CHAT, LOOK, ROOT = ["chat scripted"], ["execute_tool look"], "invoke_agent LangGraph"
TREE = [[ROOT, CHAT, LOOK, LOOK, CHAT]]
ROLES = ["system", "user", "assistant", "tool", "tool", "assistant"]


def app(watched: Watched, script: list[Any] = SCRIPT, **options: Any) -> Any:
    return agent(ScriptedModel(script=script, pause=options.pop("pause", 0.0)), **options).with_config(
        callbacks=[watched.handler]
    )


def roles(run: Run) -> list[str]:
    return [message.role for message in run.messages]


def whole(run: Run) -> None:
    """The ordinary run, with every call in its place and its tokens."""
    assert run.status == "ok"
    assert run.failure is None
    assert roles(run) == ROLES
    assert [call.message for call in run.calls] == [2, 5]
    assert [call.untrainable for call in run.calls] == [None, None]
    assert [call.completion_ids for call in run.calls] == [(0, 7), (1, 7)]
    assert run.messages[2].tool_calls[0].arguments == {"key": 1}
    assert [response.response for message in run.messages for response in message.responses] == ["value 1", "value 2"]
    assert run.messages[5].text == "they are value 1 and value 2"
    assert {(run_.name, run_.call_id, run_.result) for run_ in run.tools} == {
        ("look", "call1", "value 1"),
        ("look", "call2", "value 2"),
    }
    assert run.calls[0].started <= run.calls[0].ended <= run.calls[1].started <= run.ended
