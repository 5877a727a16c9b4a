"""Kinds of checks that were written as data: what they answer, and when they cannot."""

from __future__ import annotations

from cm2_agent.types.view import View


class FailureUnknown(Exception):
    """The answer hangs on whether a call failed, which the recording does not tell."""

    def __init__(self, tool: str) -> None:
        super().__init__(
            f"whether the call of {tool} failed is not in the recording; import it with --error-pattern, which says how"
            " its errors read"
        )


class DataCheck:
    """A check of a view that was written as data. Raises FailureUnknown where it cannot be answered."""

    def __call__(self, view: View) -> bool:
        raise NotImplementedError


class LastingCheck(DataCheck):
    """One that stays true once it is: what it asks for has happened."""

    def first_step(self, view: View) -> int | None:
        """The 0-based step of the view after which it is true, None where it never is."""
        raise NotImplementedError

    def __call__(self, view: View) -> bool:
        return self.first_step(view) is not None


__all__ = ["DataCheck", "FailureUnknown", "LastingCheck"]
