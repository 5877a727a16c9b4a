"""Verdicts and rewards as LangSmith's feedback on a trace's root run, by its own SDK."""

from __future__ import annotations

import logging
import os
import uuid

from cm2_agent.errors import SendError, require_extra
from cm2_agent.integrations.verdict_feedback import Feedback, shown


class LangSmithFeedback:
    """LangSmith, as the environment names it: LANGSMITH_API_KEY, and LANGSMITH_ENDPOINT where no `url` is given.

    Feedback that is there is changed, else it is created: two requests the first time. LangSmith refuses what speaks of
    a run that it does not have."""

    tool = "langsmith"

    def __init__(self, url: str | None = None, *, counting: bool = False) -> None:
        """`counting`: nothing will be sent, which needs no key. Raises MissingExtra, and SendError without a key."""
        require_extra("langsmith", "Verdicts sent to LangSmith", "langsmith")
        from langsmith import Client

        if not (counting or os.environ.get("LANGSMITH_API_KEY") or os.environ.get("LANGCHAIN_API_KEY")):
            raise SendError("LangSmith's key is missing; set LANGSMITH_API_KEY")
        # Nothing in the background: what is acknowledged is there. And no sample: all of it is meant.
        self._client = Client(api_url=url, auto_batch_tracing=False, tracing_sampling_rate=1.0, timeout_ms=30_000)
        self.url = shown(self._client.api_url)

    def send(self, feedback: list[Feedback]) -> dict[str, str]:
        """Send feedback, and return by id why some was not taken. Raises SendError where none can be."""
        from langsmith.utils import filter_logs

        with filter_logs(logging.getLogger("langsmith.client"), [_Quiet()]):
            found = {one.id: self._refused(one) for one in feedback}
        return {id: why for id, why in found.items() if why is not None}

    def _refused(self, one: Feedback) -> str | None:
        """Why it was not taken, None where it was. Raises SendError."""
        from langsmith import utils

        try:
            run = uuid.UUID(one.place.span)
            project = None if one.place.project is None else uuid.UUID(one.place.project)
        except ValueError:
            return f"{one.place.span!r} or its project {one.place.project!r} is no UUID, as LangSmith's are"
        try:
            try:
                self._client.update_feedback(one.id, score=one.value, value=one.label, comment=one.comment)
            except utils.LangSmithNotFoundError:
                self._client.create_feedback(
                    run,
                    one.name,
                    trace_id=run,
                    session_id=project,
                    score=one.value,
                    value=one.label,
                    comment=one.comment,
                    feedback_id=one.id,
                    feedback_source_type="api" if one.judge is None else "model",
                    source_info={**one.metadata, **({} if one.judge is None else {"judge": one.judge})},
                    stop_after_attempt=1,
                )
        except utils.LangSmithNotFoundError:
            return f"it has no run {run}"
        except utils.LangSmithConnectionError:  # its words hold the ends of the key
            raise SendError(f"LangSmith at {self.url} cannot be reached") from None
        except utils.LangSmithError as error:
            answer = getattr(error.__context__, "response", None)
            status, body = getattr(answer, "status_code", None), " ".join(getattr(answer, "text", "").split())[:200]
            if status in (400, 422):
                return f"HTTP {status}: {body}"
            raise SendError(f"LangSmith at {self.url} answered {status or type(error).__name__}: {body}") from None
        return None


class _Quiet(logging.Filter):
    """Its client also logs what it raises, with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.ERROR


__all__ = ["LangSmithFeedback"]
