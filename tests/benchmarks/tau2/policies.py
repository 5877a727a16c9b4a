"""Policies of known quality for a desk: each plays the task's reference, with a defect of its own at a set rate.

A policy is a generator: it yields calls and replies and is sent what came back, so that some can answer to what they
were told. Draws depend on the seed, the task and the place in the dialogue alone: a policy that drops a write at 0.3
drops it at 0.5 too, and one does on a simulated desk what it does on the real one as long as it is told the same."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from cm2_agent.types.task import Task
from tests.tracing.apps import ScriptedModel


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call to make."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a call was answered."""

    content: str
    error: bool


Play: TypeAlias = "Generator[Asked | str, Told | None, None]"
Conduct: TypeAlias = "Callable[[Script], Play]"
OFFER = "Here is what I can do for you. Shall I go ahead?"


@dataclass(frozen=True, kw_only=True)
class Script:
    """The reference of a task, and draws that depend on nothing else."""

    task: Task
    seed: int

    @property
    def looks(self) -> list[Asked]:
        """The look-ups before the first write."""
        return self._calls[: self._first]

    @property
    def acts(self) -> list[Asked]:
        """Everything from the first write on."""
        return self._calls[self._first :]

    @property
    def reply(self) -> str:
        """What the user has to be told."""
        return " ".join(["All is settled.", *map(str, self.task.outcome["outputs"])])

    @property
    def user(self) -> str | None:
        """A customer whom the task is about."""
        return next((name.removeprefix("user:") for name in self.task.entities if name.startswith("user:")), None)

    def writes(self, call: Asked) -> bool:
        return any(tool.name == call.name and tool.reads is False for tool in self.task.tools)

    def random(self, *place: object) -> Random:
        return Random(f"{self.seed}:{self.task.id}:{place}")

    def mistaken(self, call: Asked, place: object) -> Asked:
        """The call with one of its arguments wrong: another choice, another number, or an id with another last
        character."""
        schema = next(tool.parameters for tool in self.task.tools if tool.name == call.name)
        random = self.random("mistake", place)
        name = random.choice(sorted(call.arguments))
        choices = [one for one in schema["properties"][name].get("enum", ()) if one != call.arguments[name]]
        wrong = random.choice(choices) if choices else _wrong(call.arguments[name], random)
        return Asked(name=call.name, arguments={**call.arguments, name: wrong})

    @property
    def _calls(self) -> list[Asked]:
        return [Asked(name=call.name, arguments=call.arguments) for call in self.task.recorded]

    @property
    def _first(self) -> int:
        return next((at for at, call in enumerate(self._calls) if self.writes(call)), len(self._calls))


def _wrong(value: Any, random: Random) -> Any:
    if isinstance(value, list) and value:
        at = random.randrange(len(value))
        return [*value[:at], _wrong(value[at], random), *value[at + 1 :]]
    if isinstance(value, Mapping) and value:
        key = random.choice(sorted(value))
        return {**value, key: _wrong(value[key], random)}
    if isinstance(value, int | float):
        return value + 1
    text = str(value)
    return text[:-1] + random.choice([letter for letter in "0123456789" if letter != text[-1:]])


def plays(
    *,
    looks: bool = True,
    tells: bool = True,
    drop: float = 0.0,
    wrong: float = 0.0,
    again: bool = False,
    extra: float = 0.0,
) -> Conduct:
    """The reference, but each write is dropped, or made with a wrong argument, at a rate; `again`: made right once the
    desk has refused it. An extra write that nobody asked for is made at a rate; without `looks` nothing is looked up,
    without `tells` nothing told."""

    def play(script: Script) -> Play:
        for call in script.looks if looks else ():
            yield call
        yield OFFER
        for at, call in enumerate(script.acts):
            draw = script.random("write", at).random()
            if not script.writes(call):
                if looks:
                    yield call
            elif draw < wrong:
                told = yield script.mistaken(call, at)
                if again and told is not None and told.error:
                    yield call
            elif draw >= drop:
                yield call
        if script.user is not None and script.random("extra").random() < extra:
            yield _unasked(script.task, script.user)
        yield script.reply if tells else "All is settled."

    return play


def gives_up(rate: float) -> Conduct:
    """The reference, but the id of the first look-up is mistyped at a rate; told of an error, the policy does no
    more."""

    def play(script: Script) -> Play:
        mistyped = script.random("typo").random() < rate
        for at, call in enumerate(script.looks):
            told = yield script.mistaken(call, "typo") if at == 0 and mistyped else call
            if at == 0 and mistyped and told is not None and told.error:
                yield "I cannot find that."
                yield "I cannot help you, I am sorry."
                return
        yield OFFER
        for call in script.acts:
            yield call
        yield script.reply

    return play


def idle(script: Script) -> Play:
    """Looks nothing up, writes nothing, tells nothing."""
    yield "I am sorry."
    yield "I cannot help you."


def _unasked(task: Task, user: str) -> Asked:
    if task.metadata["desk"] == "airline":
        return Asked(name="send_certificate", arguments={"user_id": user, "amount": 50})
    street = {
        "address1": "1 Main Street",
        "address2": "",
        "city": "Dover",
        "state": "DE",
        "country": "USA",
        "zip": "19901",
    }
    return Asked(name="modify_user_address", arguments={"user_id": user, **street})


POLICIES: Mapping[str, Conduct] = {
    "reference": plays(),
    "no_looks": plays(looks=False),
    "silent": plays(tells=False),
    "drops_15": plays(drop=0.15),
    "drops_30": plays(drop=0.3),
    "drops_50": plays(drop=0.5),
    "wrong_30": plays(wrong=0.3),
    "wrong_60": plays(wrong=0.6),
    "recovers_60": plays(wrong=0.6, again=True),
    "extra_30": plays(extra=0.3),
    "extra_100": plays(extra=1.0),
    "gives_up_50": gives_up(0.5),
    "idle": idle,
}
AT_LEAST: Sequence[tuple[str, str]] = (
    ("reference", "no_looks"),
    ("reference", "silent"),
    ("reference", "drops_15"),
    ("drops_15", "drops_30"),
    ("drops_30", "drops_50"),
    ("reference", "wrong_30"),
    ("wrong_30", "wrong_60"),
    ("recovers_60", "wrong_60"),
    ("reference", "recovers_60"),
    ("reference", "extra_30"),
    ("extra_30", "extra_100"),
    ("reference", "gives_up_50"),
    ("drops_50", "idle"),
    ("wrong_60", "idle"),
)
"""Pairs of which the first is at least as good as the second on every task, by how they are made."""


class PolicyModel(ScriptedModel):
    """A policy as a chat model: it knows the task by the user's first words."""

    conduct: Any
    tasks: dict[str, Task]
    seed: int = 0

    @classmethod
    def of(cls, name: str, tasks: Sequence[Task], seed: int = 0) -> PolicyModel:
        return cls(conduct=POLICIES[name], tasks={task.turns[0]: task for task in tasks}, seed=seed, model_name=name)

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        first = next(at for at, message in enumerate(messages) if isinstance(message, HumanMessage))
        play = self.conduct(Script(task=self.tasks[str(messages[first].content)], seed=self.seed))
        move = next(play)
        for heard in _heard(messages[first + 1 :]):
            move = play.send(heard)
        said = AIMessage(content=move) if isinstance(move, str) else _call(move, len(messages))
        said.response_metadata = {"model_name": self.model_name, "model_version": self.model_name}
        return said


def _heard(messages: Sequence[BaseMessage]) -> Iterator[Told | None]:
    for message in messages:
        if isinstance(message, ToolMessage):
            yield Told(content=str(message.content), error=message.status == "error")
        elif isinstance(message, HumanMessage):
            yield None


def _call(asked: Asked, place: int) -> AIMessage:
    call = {"name": asked.name, "args": dict(asked.arguments), "id": f"call_{place}", "type": "tool_call"}
    return AIMessage(content="", tool_calls=[call])


__all__ = ["AT_LEAST", "POLICIES", "PolicyModel"]
