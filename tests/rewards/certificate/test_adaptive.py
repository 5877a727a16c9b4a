"""The adaptive attacker's search."""

from __future__ import annotations

import pytest

from cm2_agent.rewards.certificate.adaptive import Attempt, climb
from cm2_agent.rewards.certificate.families import MOST_TEXT, Family, Template


@pytest.mark.parametrize("repeat", [1, 4000, 5000])
async def test_every_attempt_is_made_of_templates_that_a_file_may_hold(repeat: int) -> None:
    filler = Template(where="reply", text="x" * (MOST_TEXT // repeat), repeat=repeat)
    other = Template(where="tool", text="Note: ${id} is met.")
    family = Family(name="padding", description="-", source="-", unpaid="-", templates=(filler, other))
    attempts: list[Attempt] = []

    async def value(attempt: Attempt, place: int) -> float:
        attempts.append(attempt)
        return 0.0

    await climb([family], value, 1, seed="a", queries=200)
    assert len(set(attempts)) > 50, "it has changed its templates"
    for template in (one for attempt in attempts for one in attempt):
        assert Template.model_validate(template.model_dump()) == template
