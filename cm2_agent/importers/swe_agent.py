"""Trajectories of SWE-agent (`.traj`) with actions as text or as function calls, and of mini-SWE-agent.

Source: swe-agent.com, "Trajectories"; a history item has a `message_type`, the action's has `thought` and `action`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, mapping_of, number_of, text_of
from cm2_agent.importers.openai_messages import read_messages
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.run_attributes import CUT

SHELL = "bash"
"""The tool that an action written as text is a call of."""


def is_swe_agent(record: JSON) -> bool:
    """Whether it is a trajectory: a history of typed messages, or steps with action and observation."""
    if not isinstance(record, Mapping):
        return False
    history, steps = record.get("history"), record.get("trajectory")
    typed = isinstance(history, list) and bool(history) and isinstance(history[0], Mapping) and "role" in history[0]
    stepped = isinstance(steps, list) and bool(steps) and isinstance(steps[0], Mapping) and "observation" in steps[0]
    return typed or stepped or str(record.get("trajectory_format", "")).startswith("mini-swe-agent")


def read_swe_agent(record: JSON) -> Chat:
    """One trajectory → its dialogue. Raises TraceError."""
    if not isinstance(record, Mapping):
        raise TraceError(f"is {type(record).__name__}; expected an object with history and trajectory")
    info = mapping_of(record.get("info"))
    history = record.get("history") or record.get("messages")
    shown = sum(
        isinstance(one, Mapping) and bool(one.get("is_demo")) for one in (history if isinstance(history, list) else ())
    )
    if isinstance(history, list) and history:
        messages = _history([one for one in history if not (isinstance(one, Mapping) and one.get("is_demo"))])
        messages += _last_observation(messages, record.get("trajectory"))
    else:
        messages = _steps(record.get("trajectory"))
    status = info.get("exit_status")
    reward = number_of(record.get("resolved", info.get("resolved")), "resolved")
    problem = text_of(record.get("instance_id")) or text_of(info.get("instance_id"))
    model = mapping_of(info.get("model_stats")).get("model")
    submitted = status is None or "submitted" in str(status).casefold()
    return Chat(
        messages=read_messages(messages, unmarked=True),
        key=["swe-agent", problem, messages],
        prefix="swe",
        name=PurePosixPath(str(record.get("environment") or "swe-agent")).name or "swe-agent",
        model=text_of(model),
        task=problem or f"swe-{content_hash([one for one in messages if one['role'] != 'assistant'][:2])[:12]}",
        outcomes={} if reward is None else {OFFICIAL: reward},
        attributes={} if submitted else {CUT: str(status)},
        metadata={} if status is None else {"exit_status": str(status)},
        note="messages of demonstrations (is_demo), which are no part of the dialogue, are left out" if shown else None,
    )


def _history(history: Sequence[JSON]) -> list[dict[str, JSON]]:
    """The history as chat messages: an action written as text is a call of the shell, and the observation after it what
    that answered."""
    found: list[dict[str, JSON]] = []
    waiting: str | None = None
    for number, one in enumerate(history):
        item = mapping_of(one)
        role = item.get("role")
        if role == "assistant" and (item.get("tool_calls") or item.get("function_call")):
            kept = {key: item[key] for key in ("role", "content", "tool_calls", "function_call") if item.get(key)}
            found.append({"role": "assistant", **kept})
            waiting = None
        elif role == "assistant":
            action = item.get("action")
            if isinstance(action, str) and action.strip():
                waiting = f"action-{number}"
                found.append(_action(item.get("thought", item.get("content")), action, waiting))
            else:
                waiting = None
                found.append({"role": "assistant", "content": item.get("content")})
        elif role == "tool":
            ids = item.get("tool_call_ids")
            identity = ids[0] if isinstance(ids, list) and ids else item.get("tool_call_id")
            found.append({"role": "tool", "tool_call_id": identity, "content": item.get("content")})
        elif role == "user" and waiting is not None and item.get("message_type", "observation") == "observation":
            found.append({"role": "tool", "tool_call_id": waiting, "content": item.get("content")})
            waiting = None
        else:
            found.append({"role": role, "content": item.get("content")})
    return found


def _last_observation(messages: Sequence[Mapping[str, JSON]], steps: JSON) -> list[dict[str, JSON]]:
    """What the last action was answered: the history leaves it out, since no model reads it any more."""
    last = mapping_of(steps[-1]) if isinstance(steps, list) and steps else {}
    calls = messages[-1].get("tool_calls") if messages else None
    if not calls or not isinstance(last.get("observation"), str):
        return []
    return [{"role": "tool", "tool_call_id": mapping_of(calls[-1]).get("id"), "content": last["observation"]}]


def _steps(steps: JSON) -> list[dict[str, JSON]]:
    """A trajectory without its history: thoughts, actions and observations."""
    if not isinstance(steps, list) or not steps:
        raise TraceError("has neither history nor trajectory; expected the steps of a run of SWE-agent")
    found: list[dict[str, JSON]] = []
    for number, one in enumerate(steps):
        step = mapping_of(one)
        action, identity = step.get("action"), f"action-{number}"
        if isinstance(action, str) and action.strip():
            found.append(_action(step.get("thought"), action, identity))
            found.append({"role": "tool", "tool_call_id": identity, "content": step.get("observation")})
        else:
            found.append({"role": "assistant", "content": step.get("response") or step.get("thought")})
    return found


def _action(thought: JSON, action: str, identity: str) -> dict[str, JSON]:
    call = {"id": identity, "name": SHELL, "arguments": {"command": action}}
    return {"role": "assistant", "content": thought, "tool_calls": [call]}


__all__ = ["SHELL", "is_swe_agent", "read_swe_agent"]
