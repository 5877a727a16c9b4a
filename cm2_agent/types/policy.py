"""Policy: the weights of an agent with their lineage, and Promotion: one time that a policy became the agent's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cm2_agent.errors import StoreError
from cm2_agent.types.json_values import JSON

PolicyState: TypeAlias = Literal["candidate", "promoted", "replaced", "rejected", "rolled_back"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One policy of an agent.

    Args:
        name: The agent's; the policies of a name replace each other.
        version: The model version that its rollouts bear.
        folder: Where its weights are, None where nobody knows.
        parent: The version that it was trained from, None for one that was not trained here.
        state: "candidate"; "promoted", of which a name has one at most; "replaced" by a later one; "rejected" by an
            evaluation; or "rolled_back".
        reward: The reward version that it was trained on.
        certificate: When the certificate of that version was made, which counted then; None where it had none.
        data: What it was trained on: names of runs, counts, a hash of the traces' ids.
        settings: Of the training.
        metrics: Of the training and of evaluations.
        stored: When it was registered, in nanoseconds since the epoch.
    """

    name: str
    version: str
    folder: str | None = None
    parent: str | None = None
    state: PolicyState = "candidate"
    reward: str | None = None
    certificate: str | None = None
    data: Mapping[str, JSON] = field(default_factory=dict)
    settings: Mapping[str, JSON] = field(default_factory=dict)
    metrics: Mapping[str, JSON] = field(default_factory=dict)
    stored: int = 0

    def to_json(self) -> dict[str, JSON]:
        found: dict[str, JSON] = dict(self.__dict__)
        return found | {name: dict(getattr(self, name)) for name in ("data", "settings", "metrics")}


def require_name(name: str) -> None:
    """Raises StoreError where an agent's name is not one printable line: it stands in tables, in the ids of dialogues
    and in commands that are typed.

    >>> from cm2_agent.types.policy import require_name
    >>> require_name("support")
    """
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise StoreError(
            f"the agent's name is {name!r:.80}; expected a line of printable characters that neither begins nor ends"
            " with a space, such as support (--name)"
        )


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A policy of `name` became the promoted one, for a `reason`, at `promoted` (nanoseconds since the epoch); `undone`
    says when it was rolled back."""

    name: str
    version: str
    reason: Mapping[str, JSON] = field(default_factory=dict)
    promoted: int
    undone: int | None = None

    def to_json(self) -> dict[str, JSON]:
        found: dict[str, JSON] = dict(self.__dict__)
        return found | {"reason": dict(self.reason)}
