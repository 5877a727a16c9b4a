"""Results of τ²-bench: one object with the tasks and the simulations of them.

Source: github.com/sierra-research/tau2-bench (`data/tau2/results`, `src/tau2/data_model/simulation.py`). The simulated
user has tools too: what it calls is the user's, and so is what these tools answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, mapping_of, number_of, text_of
from cm2_agent.importers.openai_messages import arguments_of, read_messages, read_tools
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import Message, Part, Text, ToolCall, ToolCallResponse
from cm2_agent.types.run_attributes import CUT, TOOL_BACKENDS
from cm2_agent.types.task import Task

_ENDED = frozenset({"user_stop", "agent_stop"})
"""The reasons of an end that the dialogue came to by itself."""


def is_tau2(record: JSON) -> bool:
    """Whether it is a file of results, or one simulation of it."""
    if not isinstance(record, Mapping):
        return False
    return isinstance(record.get("simulations"), list) and isinstance(record.get("tasks"), list)


def simulations(record: JSON) -> Iterator[tuple[str, JSON]]:
    """Each simulation of a file of results by its id, with its task and what holds of all."""
    if not isinstance(record, Mapping) or not isinstance(record.get("simulations"), list):
        raise TraceError("holds no simulations; expected the Results that tau2 run writes (info, tasks, simulations)")
    tasks = {str(task.get("id")): task for task in record.get("tasks") or [] if isinstance(task, Mapping)}
    for number, one in enumerate(record["simulations"]):
        known = mapping_of(one)
        task = tasks.get(str(known.get("task_id")))
        yield f"simulation {known.get('id', number)}", {"simulation": one, "task": task, "info": record.get("info")}


def read_tau2(record: JSON) -> Chat:
    """One simulation → its dialogue. Raises TraceError."""
    one, info, task = (mapping_of(mapping_of(record).get(key)) for key in ("simulation", "info", "task"))
    if not isinstance(one.get("messages"), list) or not one["messages"]:
        raise TraceError("has no messages; expected a simulation of tau2's Results")
    environment, agent = mapping_of(info.get("environment_info")), mapping_of(info.get("agent_info"))
    domain = text_of(environment.get("domain_name")) or "unknown"
    policy = environment.get("policy")
    messages = tuple(
        _message(number, message) for number, each in enumerate(one["messages"]) for message in _each(each)
    )
    if isinstance(policy, str) and policy and messages[0].role != "system":
        messages = (Message.of("system", policy), *messages)
    name = f"tau2-{domain}-{one.get('task_id')}"
    reason = one.get("termination_reason")
    reward = number_of(mapping_of(one.get("reward_info")).get("reward"), "reward")
    trial = one.get("trial")
    called = {call.name for message in messages if message.role == "assistant" for call in message.tool_calls}
    return Chat(
        messages=messages,
        key=["tau2", domain, one.get("task_id"), trial, one.get("seed"), one["messages"]],
        prefix=name,
        name=name,
        tools=read_tools(environment.get("tool_defs")),
        model=text_of(agent.get("llm")),
        task=name,
        rollout=trial if isinstance(trial, int) and trial >= 0 else None,
        outcomes={} if reward is None else {OFFICIAL: reward},
        attributes={
            TOOL_BACKENDS: canonical_json(dict.fromkeys(sorted(called), "real")),
            **({} if reason is None or str(reason).rpartition(".")[2] in _ENDED else {CUT: str(reason)}),
        },
        goal=_task(name, domain, task, policy),
        note=None,
    )


def _task(name: str, domain: str, task: Mapping[str, JSON], policy: JSON) -> Task:
    scenario = mapping_of(task.get("user_scenario"))
    instructions = scenario.get("instructions")
    lines = (
        [f"{key}: {value}" for key, value in instructions.items() if value]
        if isinstance(instructions, Mapping)
        else [str(instructions)] * bool(instructions)
    )
    persona = [str(scenario["persona"])] if scenario.get("persona") else []
    return Task(
        id=name,
        system=policy if isinstance(policy, str) and policy else None,
        persona="\n".join([*persona, *lines]) or None,
        outcome={"evaluation_criteria": task["evaluation_criteria"]} if task.get("evaluation_criteria") else None,
        metadata={"source": "tau2-bench", "domain": domain},
    )


def _each(message: JSON) -> list[JSON]:
    """A message; the answers of several tools that tau2 wraps as one (`MultiToolMessage`), each."""
    several = mapping_of(message).get("tool_messages")
    return several if isinstance(several, list) else [message]


def _message(number: int, message: JSON) -> Message:
    """A message of either side. A user's calls, and what they were answered, are the user's."""
    known = mapping_of(message)
    if known.get("role") == "tool" and known.get("requestor") == "user":
        response = ToolCallResponse(
            id=text_of(known.get("id")), response=known.get("content"), error=known.get("error") is True
        )
        return Message(role="user", parts=(response,))
    if known.get("role") == "user" and known.get("tool_calls"):
        return Message(role="user", parts=tuple(_user_parts(known)))
    if known.get("role") == "tool":
        message = {
            "role": "tool",
            "tool_call_id": known.get("id"),
            "content": known.get("content"),
            "is_error": known.get("error") is True,
        }
    elif known.get("role") in ("assistant", "user", "system"):
        message = {key: known[key] for key in ("role", "content", "tool_calls") if key in known}
    try:
        (read,) = read_messages([message])
    except TraceError as error:
        raise TraceError(f"message {number}: {str(error).removeprefix('message 0: ')}") from error
    return read


def _user_parts(message: Mapping[str, JSON]) -> Iterator[Part]:
    if isinstance(message.get("content"), str) and message["content"]:
        yield Text(content=message["content"])
    for call in message["tool_calls"] if isinstance(message["tool_calls"], list) else []:
        known = mapping_of(call)
        if isinstance(known.get("name"), str):
            yield ToolCall(
                id=text_of(known.get("id")), name=known["name"], arguments=arguments_of(known.get("arguments"))
            )


__all__ = ["is_tau2", "read_tau2", "simulations"]
