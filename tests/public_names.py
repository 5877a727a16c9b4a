"""The public names that no lasting face held when the outside was frozen: found by what they are, wherever they lie.

Classes and functions go by their own name; constants and aliases, which have none, are listed with it.
"""

from __future__ import annotations

from typing import Any

from cm2_agent.datasets import (
    CARD,
    EMAIL,
    KEY,
    KEYS,
    PHONE,
    SHIPPED,
    Distinct,
    Redactor,
    Rule,
    Selection,
    Split,
    UnfitTrace,
    distinct,
    entities_of,
    key_from,
    split,
    task_from_trace,
    unfit,
    with_content_id,
)
from cm2_agent.errors import (
    BudgetExhausted,
    ChecklistError,
    CM2Error,
    ConflictError,
    GuardError,
    JudgeError,
    MissingExtra,
    ModelError,
    SchemaError,
    StoreError,
    TaskError,
    ToolError,
    TraceError,
    TrainError,
    UserError,
)
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.backends.faults import Faults
from cm2_agent.graphs.backends.record import CallRecorder, load_recording
from cm2_agent.graphs.backends.replay import ReplayTools
from cm2_agent.graphs.backends.simulate import SimulatedTools
from cm2_agent.graphs.backends.tool_backends import BACKENDS, Backend, Hybrid
from cm2_agent.graphs.interception.decorator import switchable
from cm2_agent.graphs.interception.discovery import require_allowed, tools_of, undiscovered_tools
from cm2_agent.graphs.interception.langchain_middleware import ToolSwitch
from cm2_agent.graphs.interception.real_tool_guard import RealToolGuard
from cm2_agent.graphs.interception.tool_node import switched
from cm2_agent.graphs.tools.declared import DeclaredTool, declared
from cm2_agent.graphs.tools.functions import FunctionTools
from cm2_agent.graphs.tools.mcp import McpTools
from cm2_agent.importers import FORMATS, OFFICIAL, Imported, Problem, read_recordings
from cm2_agent.integrations.reward_functions import art_reward, trace_of_chat, trl_reward, verifiers_reward, verl_reward
from cm2_agent.models.tokenizer import END, PAD, byte_tokenizer
from cm2_agent.online.sinks import Alert, Threshold, Webhook
from cm2_agent.online.watch import flush
from cm2_agent.rewards.authoring.writer import ChecklistWriter
from cm2_agent.rewards.components.component import RewardComponent, as_component
from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.penalties import length_penalty
from cm2_agent.rewards.components.relative import relative
from cm2_agent.rewards.components.stack import StackTerm, add, gate, multiply, penalty
from cm2_agent.rewards.judges.panel import Cascade, Panel
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.rescore import score_groups
from cm2_agent.trainers.preference_pairs import dpo_pairs, pairs_of
from cm2_agent.types.checklist_yaml import dump_checklist, load_checklist
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.human_labels import Label
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.protocols import ToolBackend
from cm2_agent.types.run import ModelCall, RunFailure, ToolRun
from cm2_agent.types.score import Component, TurnScore
from cm2_agent.types.task import Persona, RecordedCall
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from cm2_agent.types.trace import Step, Turn

_OBJECTS: tuple[Any, ...] = (
    *(art_reward, trace_of_chat, trl_reward, verifiers_reward, verl_reward, dump_checklist, load_checklist, flush),
    *(
        Distinct,
        Redactor,
        Rule,
        Selection,
        Split,
        UnfitTrace,
        distinct,
        entities_of,
        key_from,
        split,
        task_from_trace,
        unfit,
        with_content_id,
    ),
    *(
        BudgetExhausted,
        ChecklistError,
        CM2Error,
        ConflictError,
        GuardError,
        JudgeError,
        MissingExtra,
        ModelError,
        SchemaError,
    ),
    *(StoreError, TaskError, ToolError, TraceError, TrainError, UserError),
    *(
        ToolAnswer,
        ToolRequest,
        DeclaredTool,
        Faults,
        FunctionTools,
        Hybrid,
        CallLog,
        McpTools,
        RealToolGuard,
        CallRecorder,
        ReplayTools,
    ),
    *(
        SimulatedTools,
        ToolSwitch,
        declared,
        load_recording,
        require_allowed,
        switchable,
        switched,
        tools_of,
        undiscovered_tools,
    ),
    *(
        Group,
        Rollout,
        Label,
        Message,
        Reasoning,
        Text,
        ToolCall,
        ToolCallResponse,
        ToolSpec,
        Imported,
        Problem,
        read_recordings,
    ),
    *(
        RewardComponent,
        as_component,
        ChecklistWriter,
        outcome,
        Cascade,
        Panel,
        length_penalty,
        relative,
        ChecklistScorer,
        StackTerm,
        add,
        gate,
        multiply,
        penalty,
    ),
    *(Component, TurnScore, score_groups, Alert, Threshold, Webhook, Persona, RecordedCall, ToolSpec, byte_tokenizer),
    *(RunFailure, ModelCall, Step, ToolRun, Turn, dpo_pairs, pairs_of),
)
OBJECTS: dict[str, Any] = {one.__name__: one for one in _OBJECTS}
CONSTANTS: dict[str, Any] = {
    "ToolBackend": ToolBackend,
    "BACKENDS": BACKENDS,
    "Backend": Backend,
    "Backends": Backends,
    "CARD": CARD,
    "EMAIL": EMAIL,
    "END": END,
    "FORMATS": FORMATS,
    "KEY": KEY,
    "KEYS": KEYS,
    "OFFICIAL": OFFICIAL,
    "PAD": PAD,
    "PHONE": PHONE,
    "SHIPPED": SHIPPED,
    "TOOLS": TOOLS,
}

__all__ = ["CONSTANTS", "OBJECTS"]
