"""What an error of a language model means: try again, stop the run, or NULL with its cause.

Clients of providers (pydantic-ai's, LangChain's, a bare HTTP one) have trees of errors of their own, so an error is
read by its HTTP status and its text where its class says nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    ModelTimeoutError,
    UserError,
)

from cm2_agent.errors import ModelError
from cm2_agent.types.score import NullCause
from cm2_agent.types.secrets import error_text

_NO_SCHEMA = re.compile(
    r"response_?format|json[_ ]?(schema|object|mode)|structured[_ ]?output|guided|grammar|requested parameters",
    re.IGNORECASE,
)
"""What a server says that cannot hold a reply to a schema."""
_TOO_LONG = re.compile(
    r"context[_ ](length|window|size)|maximum (context|input|prompt|model) length|(prompt|input|request) is too"
    r" (long|large)|too many (input )?tokens|input token count|reduce the length|exceed\w* the (available|maximum)"
    r" (context|number of tokens)|max_(model|input|seq)_?len|longer than the model",
    re.IGNORECASE,
)
"""What a server says of a prompt that is longer than its model reads."""
_FLAGGED = re.compile(
    r"flagged|moderation|content[_ -]?(filter|policy|management)|safety (system|policy|filter)|blocked by",
    re.IGNORECASE,
)
"""What a provider or its firewall says that would not pass on what was shown."""
_NO_CREDIT = re.compile(
    r"insufficient[_ ](quota|balance|credit|funds)|billing_hard_limit|credit balance|credit_balance|out of credits"
    r"|spend[_ ]limit|payment required",
    re.IGNORECASE,
)
_NO_ACCESS = re.compile(
    r"api[_ -]?key|unauthori[sz]ed|(invalid|unknown|unsupported|no such) model|model[^.]{0,80}(does not exist|not found"
    r"|not a valid|is not (valid|available|supported)|unavailable)|not a valid model|permission",
    re.IGNORECASE,
)
"""What a provider says of a wrong key or model with a status that is not theirs."""
_READ = 2000
"""Characters of an error that are looked at: what follows may be an echo of the request."""


@dataclass(frozen=True, kw_only=True)
class RequestFailure:
    """Why there is no answer. `retry`: asking again may help, after `wait` seconds where the provider says so; `reply`:
    there was a reply, but not what was asked for. `cause`: `content` where what was shown can bring it about
    (docs/method.md §4). `refused`: the provider would refuse any request, for its key, the model's name, the credit."""

    cause: NullCause
    explanation: str
    retry: bool = True
    wait: float | None = None
    reply: bool = False
    refused: bool = False
    rejected: bool = False
    """The provider rejects this request, and may reject any."""
    access: bool = False
    """So it does for the key, the model's name or a right: where it has answered before, it may be a firewall that
    minds what was shown."""
    asked: bool = True
    """False in a forecast, which asks nobody."""


class MalformedReply(ModelError):
    """A reply that cannot be read as what was asked for."""


class RequestFailed(ModelError):
    """No answer: `failure` says why. Raised by a reader of replies, it ends the asking."""

    def __init__(self, failure: RequestFailure) -> None:
        super().__init__(failure.explanation)
        self.failure = failure


class AnswerRefused(ModelError):
    """The model would not answer."""


class NoSchema(ModelError):
    """A model that cannot be asked to hold its reply to a schema in this way; nothing was sent."""


def failure_of(error: Exception, *, of: str, timeout: float) -> RequestFailure:
    """What an error of a request to the model `of` such a use, or of reading its reply, means."""
    text = f"{type(error).__name__}: {error_text(error)}"
    if isinstance(error, MalformedReply):
        return RequestFailure(cause="infrastructure", explanation=error_text(error, 300), reply=True)
    if isinstance(error, AnswerRefused | ContentFilterError) or type(error).__name__ == "OpenAIRefusalError":
        return RequestFailure(cause="content", explanation=f"the {of} refused: {error_text(error)}", reply=True)
    if isinstance(error, TimeoutError | ModelTimeoutError) or "Timeout" in type(error).__name__:
        return RequestFailure(cause="infrastructure", explanation=f"no answer within {timeout:g} s")
    status, words = status_of(error), str(error)[:_READ]
    rejected = isinstance(error, ModelRequestRejectedError) or status in _REJECTED
    if isinstance(error, ModelContextWindowExceededError) or _is_too_long(error, status, words):
        return RequestFailure(
            cause="content", explanation=f"what was shown is too long for the {of}: {text}", retry=False
        )
    if status in {400, 403, 422, 451} and _FLAGGED.search(words):
        return RequestFailure(cause="content", explanation=f"the {of} refused: {text}", retry=False)
    if _is_refused(error, status, words):
        return RequestFailure(cause="infrastructure", explanation=text, retry=False, refused=True)
    if rejected or isinstance(error, UserError):
        access = status == 403 or (status in {400, 422} and _NO_ACCESS.search(words) is not None)
        return RequestFailure(cause="infrastructure", explanation=text, retry=False, rejected=True, access=access)
    return RequestFailure(cause="infrastructure", explanation=text, wait=_wait_of(error))


_REJECTED = frozenset({*range(400, 500), 501, 505} - {408, 409, 423, 425, 429, 499})
"""Statuses of requests that will be rejected again; the others pass, or are of the moment."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries, whichever client raised it; None where it carries none."""
    named: Any = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (named, "status_code"), (error, "http_status"), (error, "code")):
        status: Any = getattr(holder, name, None)
        status = getattr(status, "value", status)
        if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
            return status
    return None


def _wait_of(error: Exception) -> float | None:
    """Seconds that the provider asks to wait."""
    if isinstance(error, ModelAPIError):
        return error.retry_after
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    try:
        return float(headers["retry-after"])
    except (KeyError, TypeError, ValueError):
        return None


def may_lack_schemas(error: Exception) -> bool:
    """Whether a request may have been rejected for the schema that it carried: it was rejected, and for no reason that
    is known to be another."""
    if isinstance(error, NoSchema):
        return True
    failure = failure_of(error, of="model", timeout=0)
    return status_of(error) in {400, 415, 422, 501} and failure.cause == "infrastructure" and not failure.refused


def says_no_schema(error: Exception) -> bool:
    """Whether an error says that the model cannot hold its reply to a schema."""
    if isinstance(error, NoSchema):
        return True
    status = status_of(error)
    return (
        status is not None
        and status not in {401, 402, 403, 408, 429}
        and _NO_SCHEMA.search(str(error)[:_READ]) is not None
        and not _is_too_long(error, status, str(error)[:_READ])
    )


def says_too_long(error: Exception) -> bool:
    """Whether an error says that a model's context does not hold what it was to read, whichever client raised it."""
    return isinstance(error, ModelContextWindowExceededError) or _is_too_long(
        error, status_of(error), str(error)[:_READ]
    )


def _is_too_long(error: Exception, status: int | None, words: str) -> bool:
    if type(error).__name__.endswith("ContextOverflowError"):
        return True
    return status == 413 or (status in {400, 422, 500} and _TOO_LONG.search(words) is not None)


def _is_refused(error: Exception, status: int | None, words: str) -> bool:
    """Whether the provider would refuse any request. Not a 403 by itself: a firewall says that of what was shown."""
    if status == 403:
        return _NO_CREDIT.search(words) is not None
    if isinstance(error, ModelAuthenticationError | ModelNotFoundError | ModelQuotaExceededError):
        return True
    return status in {401, 402, 404} or (status in {400, 429} and _NO_CREDIT.search(words) is not None)


__all__ = [
    "AnswerRefused",
    "MalformedReply",
    "NoSchema",
    "RequestFailed",
    "RequestFailure",
    "failure_of",
    "may_lack_schemas",
    "says_no_schema",
    "says_too_long",
    "status_of",
]
