"""Times as they are typed: a date, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cm2_agent.errors import StoreError

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "w": "weeks"}


def age(text: str, option: str = "--older-than") -> timedelta:
    """A length of time such as `90d`. Raises StoreError."""
    found = _age(text)
    if found is None:
        raise StoreError(f"{option} is {text!r}; expected a number and w, d, h or m, such as 90d")
    return found


def moment(text: str, option: str) -> datetime:
    """A time by ISO 8601, without a zone in UTC, or an age, counted back from now. Raises StoreError.

    >>> moment("2026-05-20T12:00+02:00", "--since").isoformat(), moment("2026-05-20", "--since").isoformat()
    ('2026-05-20T12:00:00+02:00', '2026-05-20T00:00:00+00:00')
    """
    try:
        ago = _age(text)
        found = datetime.now(UTC) - ago if ago is not None else datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise StoreError(
            f"{option} is {text!r}; expected a date or a time such as 2026-05-20 or 2026-05-20T12:00+02:00, or an age"
            " such as 7d or 24h"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _age(text: str) -> timedelta | None:
    found = re.fullmatch(r"([0-9]{1,6})([dhmw])", text.strip(), re.ASCII)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


__all__ = ["age", "moment"]
