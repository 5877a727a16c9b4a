"""A world is one dialogue's own desk: a copy, closed in the end, and taken up by another process."""

from __future__ import annotations

import json

import pytest

from cm2_agent.benchmarks.tau2.world import package
from cm2_agent.errors import ToolError
from tests.benchmarks.tau2.rollouts import desk_of


def test_a_world_is_a_copy_of_its_own() -> None:
    desk = desk_of("retail")
    before = package("retail").image.get_hash()
    task = next(task for task in desk.tasks() if any(call.name == "cancel_pending_order" for call in task.recorded))
    cancel = next(call for call in task.recorded if call.name == "cancel_pending_order")
    with desk.world(task) as one, desk.world(task) as other:
        untouched = other.digest()
        answer, error = one.call(cancel.name, cancel.arguments)
        assert not error
        assert '"cancelled"' in answer
        assert one.digest() != untouched
        assert other.digest() == untouched == before
        assert one.call(cancel.name, cancel.arguments) == ("Error: Non-pending order cannot be cancelled", True)
    with pytest.raises(ToolError, match="was closed"):
        one.call(cancel.name, cancel.arguments)
    assert package("retail").image.get_hash() == before


def test_a_world_can_be_brought_back() -> None:
    """What it says of itself is JSON; a fresh desk that takes it up is where the first was left, and gives new bookings
    the same ids."""
    desk = desk_of("airline")
    for task in desk.tasks(limit=12):
        with desk.world(task) as one, desk.world(task) as other:
            half = len(task.recorded) // 2 + 1
            for call in task.recorded[:half]:
                one.call(call.name, call.arguments)
            other.restore(json.loads(json.dumps(one.state())))
            for call in task.recorded[half:]:
                assert one.call(call.name, call.arguments) == other.call(call.name, call.arguments)
            if one.state():
                assert one.digest() == other.digest()


def test_a_world_is_closed_whatever_happens() -> None:
    desk = desk_of("retail")
    with pytest.raises(RuntimeError, match="midway"), desk.world(desk.tasks(limit=1)[0]) as world:
        raise RuntimeError("midway")
    with pytest.raises(ToolError, match="was closed"):
        world.digest()
