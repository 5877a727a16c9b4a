"""A checklist out of a benchmark's gold actions: the expected writes, no other write, and what the user must be told.

The tables below name a desk's tools that write, and the arguments that leave no mark in its database. Nothing here
knows the rollout or its official reward."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cm2_agent.types.checklist_item import ChecklistModel, ItemModel
from cm2_agent.types.json_values import JSON, same_json

WRITES: Mapping[str, tuple[str, ...]] = {
    "airline": (
        "book_reservation",
        "cancel_reservation",
        "send_certificate",
        "update_reservation_baggages",
        "update_reservation_flights",
        "update_reservation_passengers",
    ),
    "retail": (
        "cancel_pending_order",
        "exchange_delivered_order_items",
        "modify_pending_order_address",
        "modify_pending_order_items",
        "modify_pending_order_payment",
        "modify_user_address",
        "return_delivered_order_items",
    ),
}
"""The tools that change a desk's database."""
READS: Mapping[str, tuple[str, ...]] = {
    "airline": (
        "calculate",
        "get_reservation_details",
        "get_user_details",
        "list_all_airports",
        "search_direct_flight",
        "search_onestop_flight",
        "think",
        "transfer_to_human_agents",
    ),
    "retail": (
        "calculate",
        "find_user_id_by_email",
        "find_user_id_by_name_zip",
        "get_order_details",
        "get_product_details",
        "get_user_details",
        "list_all_product_types",
        "think",
        "transfer_to_human_agents",
    ),
}
"""The tools that leave it as it is."""
_THINGS = ("reservation_id", "order_id")
"""The arguments that name what a write changes."""


class GoldAction(BaseModel):
    """One action of the reference solution."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    name: str
    arguments: Mapping[str, Any] = Field(default_factory=dict, alias="kwargs")


def compile_gold(
    actions: Sequence[GoldAction], outputs: Sequence[str], *, name: str, writes: Sequence[str]
) -> ChecklistModel:
    """The task's checklist, in the closing block (the user is simulated, so no turn is fixed before the rollout).

    One `reach` item an expected write: a call of that tool that succeeded, with structurally equal arguments. Writes to
    one reservation or order (or new ones for one user) depend on each other in the reference's order, since the
    database keeps it. One item *no other write*: every write that succeeded is an expected one, each at most once; it
    waits for the expected writes, so that doing nothing earns nothing where something was to be done, and weighs as
    much as all else together, so that an illegal write costs half the reward. One `reach` item an output: a reply holds
    it, commas and case aside, as the official check has it. The reward is 1 exactly when all of this holds. (Of equal
    expected writes one is asked for and each is allowed.)"""
    items: list[ItemModel] = []
    expected: list[dict[str, JSON]] = []
    last: dict[str, str] = {}
    for action in actions:
        if action.name not in writes:
            continue
        call: dict[str, JSON] = {"called": action.name, "with": _marks(action)}
        again = any(one["called"] == action.name and same_json(one["with"], call["with"]) for one in expected)
        expected.append(call)
        if again:
            continue  # no check counts calls from below: an equal write is allowed again, its absence is not seen
        item = f"write_{len(expected)}_{action.name}"
        named = next((str(action.arguments[key]) for key in _THINGS if key in action.arguments), None)
        thing = named or f"new of {action.arguments.get('user_id')}"
        before = (last[thing],) if thing in last else ()
        last[thing] = item
        items.append(
            ItemModel(
                id=item,
                check={**call, "succeeded": True},
                turn="trace",
                depends_on=before,
                facet="tool_usage",
                level="action",
            )
        )
    others = ItemModel(
        id="no_other_write",
        check={"only_called": expected, "among": list(writes)},
        turn="trace",
        depends_on=tuple(item.id for item in items),
        weight=max(1.0, float(len(items) + len(outputs))),
        facet="tool_usage",
        level="task",
    )
    output_items = [
        ItemModel(
            id=f"tells_{number}",
            check={"reply_matches": _pattern(output)},
            turn="trace",
            facet="context",
            level="parameter",
            question=f"Is the user told {output}?",
        )
        for number, output in enumerate(outputs, 1)
    ]
    return ChecklistModel(name=name, items=(*items, others, *output_items))


def _marks(action: GoldAction) -> dict[str, JSON]:
    """The arguments that leave a mark: bags that are all free cost nothing, so that the payment method named for them
    is not recorded."""
    arguments = dict(action.arguments)
    if action.name == "update_reservation_baggages" and arguments.get("nonfree_baggages") == 0:
        arguments.pop("payment_id", None)
    return arguments


def _pattern(output: str) -> str:
    """The output with commas allowed between any two of its characters, whatever the case."""
    return "(?i)" + ",*".join(re.escape(char) for char in output if char != ",")
