"""From the records of one root span to a Run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from cm2_agent.tracing.agents import name_agents
from cm2_agent.tracing.handoffs import with_handoffs
from cm2_agent.tracing.run_dialogue import Dialogue, run_dialogue
from cm2_agent.tracing.span_records import ChatRecord, Record, RootRecord, ToolRecord
from cm2_agent.tracing.value_dialogue import value_dialogue
from cm2_agent.types.run import ModelCall, Run, RunFailure, ToolRun
from cm2_agent.types.run_attributes import GUARD, GUARD_OUTCOME, SYSTEM

_started = attrgetter("started")


def build_run(root: RootRecord) -> Run:
    """The Run of an ended root. Its id is the hexadecimal trace id and span id of the root."""
    records = sorted(root.records, key=_started)
    chats = [record for record in records if isinstance(record, ChatRecord)]
    tools = [record for record in records if isinstance(record, ToolRecord)]
    rejected = _rejected_attempts(root)
    own_chats = [chat for chat in chats if not chat.in_tool and chat.attempt not in rejected]
    own_tools = [tool for tool in tools if not tool.in_tool and tool.attempt not in rejected]
    ran = {id(tool): _tool_run(tool) for tool in tools}
    dialogue = _dialogue(root, own_chats, own_tools, [ran[id(tool)] for tool in own_tools])
    agents = name_agents(root.name, chats, tools, dialogue.written)
    return Run(
        id=f"{root.key[0]:032x}{root.key[1]:016x}",
        thread=root.thread,
        name=root.name,
        status=root.status,
        failure=_failure(root, records) if root.status == "error" else None,
        messages=dialogue.messages,
        history=dialogue.history,
        states=dialogue.states,
        input=None if root.input is None else root.input.json,
        output=None if root.output is None else root.output.json,
        user=root.user,
        session=root.session,
        tags=root.tags,
        calls=tuple([_model_call(chat, dialogue, agents[id(chat)]) for chat in chats]),
        tools=tuple([_by(ran[id(tool)], agents[id(tool)]) for tool in tools]),
        attributes={**root.facts, SYSTEM: "graph"} if _writes_its_prompt(root, dialogue) else root.facts,
        started=root.started,
        ended=root.ended,
    )


def _writes_its_prompt(root: RootRecord, dialogue: Dialogue) -> bool:
    """Whether the system message that begins the dialogue here is not the caller's."""
    given = any(seen.message.role == "system" for seen in root.input_messages or ())
    return not given and any(message.role == "system" for message in dialogue.messages)


def _dialogue(root: RootRecord, chats: list[ChatRecord], tools: list[ToolRecord], runs: Sequence[ToolRun]) -> Dialogue:
    by_values = value_dialogue(root, chats, tools)
    if by_values is None:
        dialogue = run_dialogue(root, chats, tools, runs)
        return with_handoffs(dialogue, chats, tools)
    messages, written = by_values.result()
    return Dialogue(messages=tuple(messages), history=by_values.history, written=written)


def _model_call(chat: ChatRecord, dialogue: Dialogue, agent: str | None) -> ModelCall:
    response = chat.response
    prompt = tuple([seen.message for seen in chat.input])
    if response is None:
        return ModelCall(
            span_id=chat.span_id,
            model=chat.model,
            input=prompt,
            tools=chat.tools,
            sampling=chat.settings,
            error=chat.error or "no answer",
            agent=agent,
            started=chat.started,
            ended=chat.ended,
        )
    return ModelCall(
        span_id=chat.span_id,
        model=response.model or chat.model,
        model_version=response.model_version,
        input=prompt,
        output=None if chat.output is None else chat.output.message,
        tools=chat.tools,
        prompt_ids=response.prompt_ids,
        completion_ids=response.completion_ids,
        logprobs=response.logprobs,
        sampling={**chat.settings, **response.sampling},
        usage=response.usage,
        finish_reason=response.finish_reason,
        error=chat.error,
        message=dialogue.written.get(id(chat)),
        agent=agent,
        changed=dialogue.changed.get(id(chat)),
        started=chat.started,
        ended=chat.ended,
    )


def _by(run: ToolRun, agent: str | None) -> ToolRun:
    return run if agent is None else replace(run, agent=agent)


def _tool_run(tool: ToolRecord) -> ToolRun:
    return ToolRun(
        span_id=tool.span_id,
        name=tool.name,
        call_id=tool.call_id,
        arguments=tool.arguments,
        result=tool.result,
        error=tool.error,
        backend=tool.backend,
        fault=tool.fault,
        artifact=tool.artifact,
        started=tool.started,
        ended=tool.ended,
    )


def _failure(root: RootRecord, records: Sequence[Record]) -> RunFailure:
    """What ended the run: an error of the model or of a tool if the same exception (or one it was raised from) ended
    such a span first."""
    error = root.raised
    chain: list[BaseException] = []
    while error is not None and len(chain) < 20 and not any(error is earlier for earlier in chain):
        chain.append(error)
        error = error.__cause__ or error.__context__
    kind = type(chain[0]).__name__
    for record in sorted(records, key=lambda record: record.ended):
        if record.raised is not None and any(record.raised is cause for cause in chain):
            kind = "ModelError" if record.kind == "chat" else "ToolError"
            break
    return RunFailure(kind=kind, message=root.error or kind)


def _rejected_attempts(root: RootRecord) -> set[str]:
    """The attempts of a guarded turn that never entered the dialogue. Of a blocked turn the last one did, all but its
    reply."""
    rejected = [str(attempt["attempt"]) for attempt in root.facts.get(GUARD) or ()]
    return set(rejected[:-1] if root.facts.get(GUARD_OUTCOME) == "blocked" else rejected)
