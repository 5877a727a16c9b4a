"""Verdicts and rewards as Langfuse's scores, by its own SDK."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cm2_agent.errors import SendError, require_extra
from cm2_agent.integrations.verdict_feedback import Feedback, shown

if TYPE_CHECKING:
    from langfuse.api import CreateScoreRequest

CLOUD = "https://cloud.langfuse.com"
AT_ONCE = 50
"""So many scores a request."""


class LangfuseScores:
    """Langfuse, as the environment names it: LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY, LANGFUSE_BASE_URL where no
    `url` is given.

    A verdict is a score of type BOOLEAN on the trace, a reward one of type NUMERIC. Langfuse replaces a score that is
    sent again with the same id and timestamp, and takes those of traces that it does not have."""

    tool = "langfuse"

    def __init__(self, url: str | None = None, *, counting: bool = False) -> None:
        """`counting`: nothing will be sent, which needs no keys. Raises MissingExtra, and SendError without keys."""
        require_extra("langfuse", "Verdicts sent to Langfuse", "langfuse")
        from langfuse.api import LangfuseAPI

        public, secret = os.environ.get("LANGFUSE_PUBLIC_KEY"), os.environ.get("LANGFUSE_SECRET_KEY")
        if not counting and not (public and secret):
            raise SendError(
                "Langfuse's keys are missing; set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY to those of the project"
            )
        known = url or os.environ.get("LANGFUSE_BASE_URL") or os.environ.get("LANGFUSE_HOST") or CLOUD
        self.url = shown(known)
        self._scores = LangfuseAPI(
            base_url=known.rstrip("/"),
            username=public,
            password=secret,
            x_langfuse_public_key=public,
            x_langfuse_sdk_name="cm2-agent",
            timeout=30,
        ).scores

    def send(self, feedback: list[Feedback]) -> dict[str, str]:
        """Send scores, and return by id why some were not taken. Raises SendError where none can be."""
        refused: dict[str, str] = {}
        for start in range(0, len(feedback), AT_ONCE):
            some = feedback[start : start + AT_ONCE]
            if self._rejected(some) is not None:  # which ones, its answer does not say
                refused |= {one.id: why for one in some if (why := self._rejected([one])) is not None}
        return refused

    def _rejected(self, some: list[Feedback]) -> str | None:
        """Why one of these was not taken, None where all were. Raises SendError."""
        import httpx
        from langfuse.api.core import ApiError

        try:
            answer = self._scores.create(request=[_score(one) for one in some])
        except ApiError as error:
            if error.status_code == 400:
                return f"HTTP 400: {error.body}"
            raise SendError(f"Langfuse at {self.url} answered {error.status_code}: {error.body}") from None
        except httpx.HTTPError as error:
            raise SendError(f"Langfuse at {self.url} cannot be reached: {error or type(error).__name__}") from None
        errors = getattr(answer, "errors", None)
        return None if errors is None else "; ".join(error.message for error in errors) or "rejected"


def _score(one: Feedback) -> CreateScoreRequest:
    from langfuse.api import CreateScoreRequest, ScoreDataType

    # Only with the same time is it the same score again.
    at = datetime.fromtimestamp(one.at // 1_000_000_000, UTC) if one.at else None
    return CreateScoreRequest(
        id=one.id,
        trace_id=one.place.trace,
        name=one.name,
        value=one.value,
        data_type=ScoreDataType("NUMERIC" if one.passed is None else "BOOLEAN"),
        comment=one.comment,
        metadata={**one.metadata, **({} if one.judge is None else {"judge": one.judge})},
        timestamp=at,
    )


__all__ = ["LangfuseScores"]
