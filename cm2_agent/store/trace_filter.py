"""Which traces are meant: one set of conditions for Python and for every command that reads traces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cm2_agent.errors import StoreError
from cm2_agent.types.json_values import JSON, canonical_json

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = ("user", "session", "task", "policy", "agent", "reward")


@dataclass(frozen=True, kw_only=True)
class TraceFilter:
    """The traces that meet every condition given (`SQLStore.traces`, and the options of the commands).

    Args:
        since: those that began at this time or later. A time without a zone is UTC; a trace whose record tells no time
            is neither in `since` nor in `until`.
        until: those that began before this time.
        user: those of this user, by the application's id.
        session: those of this session, by the application's id.
        task: those of this task id.
        policy: those whose every step this policy version wrote.
        agent: those in which the graph, or an agent that took a step, has this name.
        tags: those whose caller's tags hold each of these.
        metadata: those whose caller's metadata hold each of these values under its key. Text matches what it is the
            JSON of, too: "3" the number 3, "true" the value True.
        reward: the reward version that `reward_below` and `failed` read. Where none is named, of each trace the newest
            one that it has a score under, as `SQLStore.score` takes it.
        reward_below: those whose reward is less than this. A reward that is NULL is not less than anything.
        failed: those in which each of these items failed, in one of the turns (`Verdict.failed`).

    Raises:
        StoreError: a value of the wrong type.

    >>> from cm2_agent import Message, Run, SQLStore, TraceFilter
    >>> with SQLStore("sqlite://") as store:
    ...     for name in ("ann", "bob"):
    ...         store.save_run(Run(id=name, user=name, tags=("beta",), messages=(Message.of("user", "Hi"),)))
    ...     [trace.id for trace in store.traces(TraceFilter(user="ann", tags=["beta"]))]
    ['ann']
    """

    since: datetime | None = None
    until: datetime | None = None
    user: str | None = None
    session: str | None = None
    task: str | None = None
    policy: str | None = None
    agent: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    reward: str | None = None
    reward_below: float | None = None
    failed: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise StoreError(f"the filter's {name} is {type(value).__name__} {value!r:.60}; expected text")
        for name in ("tags", "failed"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(one, str) for one in given):
                raise StoreError(f"the filter's {name} is {given!r:.60}; expected a list of texts")
            object.__setattr__(self, name, tuple(given))
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and not isinstance(moment, datetime):
                raise StoreError(f"the filter's {name} is {moment!r:.60}; expected a datetime")
        below = self.reward_below
        if below is not None and (not isinstance(below, int | float) or not math.isfinite(below)):
            raise StoreError(f"the filter's reward_below is {below!r:.60}; expected a finite number")
        for key, value in self.metadata.items():
            try:
                metadata_text(value)
            except (TypeError, ValueError) as error:
                raise StoreError(f"the filter's metadata {key!r} is {value!r:.60}; expected a JSON value") from error


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since the epoch; a time without a zone is UTC.

    >>> nanoseconds(datetime(1970, 1, 1, 0, 0, 1))
    1000000000
    """
    zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (zoned - _EPOCH) // timedelta(microseconds=1) * 1000


def metadata_text(value: JSON) -> str:
    """The spelling by which metadata are compared: text as it is, all else as JSON.

    >>> metadata_text("3"), metadata_text(3), metadata_text(True)
    ('3', '3', 'true')
    """
    return value if isinstance(value, str) else canonical_json(value)


__all__ = ["TraceFilter", "metadata_text", "nanoseconds"]
