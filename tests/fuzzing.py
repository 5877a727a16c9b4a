"""How many examples hypothesis draws: the same in every `make test`, new ones and many in `make fuzz`.

No profile has a deadline or checks how fast examples are drawn, so a busy machine decides nothing."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_EXAMPLES = {"test": 100, "fuzz": 1000}
"""The profiles that `pytest --hypothesis-profile` takes, and the examples of a test that asks for no other number."""


def register_profiles() -> None:
    """Register the profiles and load `test`; pytest's option loads the other."""
    for name, count in _EXAMPLES.items():
        settings.register_profile(
            name,
            max_examples=count,
            derandomize=name == "test",
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
            print_blob=True,
        )
    settings.load_profile("test")


def examples(count: int) -> int:
    """The number for a test that wants `count` in `make test`; it grows in `make fuzz` as every other does."""
    return count * settings().max_examples // _EXAMPLES["test"]
