"""Verdicts and rewards as annotations of Phoenix's spans, by its own client."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cm2_agent.errors import SendError, require_extra
from cm2_agent.integrations.verdict_feedback import Feedback, shown

if TYPE_CHECKING:
    from phoenix.client.__generated__.v1 import AnnotationResult, SpanAnnotationData

AT_ONCE = 100
"""So many annotations a request."""


class PhoenixAnnotations:
    """Phoenix, as the environment names it: PHOENIX_COLLECTOR_ENDPOINT where no `url` is given, PHOENIX_API_KEY where
    it wants one.

    An annotation lies on the topmost span of the trace. Phoenix replaces one of the same span, name and identifier, and
    refuses a request that names a span which it does not have."""

    tool = "phoenix"

    def __init__(self, url: str | None = None) -> None:
        """Raises MissingExtra."""
        require_extra("phoenix", "Verdicts sent to Phoenix", "phoenix.client")
        from phoenix.client import Client
        from phoenix.client.utils.config import get_base_url

        known = url or str(get_base_url())
        self.url = shown(known)
        self._spans = Client(base_url=known, api_key=os.environ.get("PHOENIX_API_KEY")).spans

    def send(self, feedback: list[Feedback]) -> dict[str, str]:
        """Send annotations, and return by id why some were not taken. Raises SendError where none can be."""
        refused: dict[str, str] = {}
        for start in range(0, len(feedback), AT_ONCE):
            some = feedback[start : start + AT_ONCE]
            if self._unknown(some) is not None:  # none of a request is taken where one span is unknown
                refused |= {one.id: why for one in some if (why := self._unknown([one])) is not None}
        return refused

    def _unknown(self, some: list[Feedback]) -> str | None:
        """Why these were not taken, None where they were. Raises SendError."""
        import httpx

        try:
            self._spans.log_span_annotations(span_annotations=[_annotation(one) for one in some], sync=True)
        except httpx.HTTPStatusError as error:
            status, body = error.response.status_code, error.response.text[:200]
            if status in (404, 422):
                return f"HTTP {status}: {body}"
            raise SendError(f"Phoenix at {self.url} answered {status}: {body}") from None
        except httpx.HTTPError as error:
            raise SendError(f"Phoenix at {self.url} cannot be reached: {error or type(error).__name__}") from None
        return None


def _annotation(one: Feedback) -> SpanAnnotationData:
    result: AnnotationResult = {"score": one.value}
    if one.label is not None:
        result["label"] = one.label
    if one.comment is not None:
        result["explanation"] = one.comment
    return {
        "span_id": one.place.span,
        "name": one.name,
        "annotator_kind": "CODE" if one.judge is None else "LLM",
        "result": result,
        "metadata": {**one.metadata, **({} if one.judge is None else {"judge": one.judge})},
        "identifier": one.id,
    }


__all__ = ["PhoenixAnnotations"]
