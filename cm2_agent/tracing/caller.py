"""Whose run it is: the ids of the application's user and session, where its config says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

USER_KEYS = (
    "user_id",
    "userId",
    "user.id",
    "enduser.id",
    "langgraph_user_id",
    "langgraph_auth_user_id",
    "langfuse_user_id",
    "user",
)
SESSION_KEYS = (
    "session_id",
    "sessionId",
    "session.id",
    "langfuse_session_id",
    "conversation_id",
    "conversationId",
    "gen_ai.conversation.id",
)
"""The names that applications and tracers use for the ids, in metadata, `configurable` and a graph's context; the first
that is there counts."""


def user_of(values: Any) -> str | None:
    """The user's id among the values (a mapping, or an object with fields), None where there is none.

    >>> user_of({"user_id": 7}), user_of({"user": {"name": "Ada"}})
    ('7', None)
    """
    return _first(values, USER_KEYS)


def session_of(values: Any) -> str | None:
    """The session's id among the values, likewise."""
    return _first(values, SESSION_KEYS)


def _first(values: Any, keys: Sequence[str]) -> str | None:
    if values is None:
        return None
    named = isinstance(values, Mapping)
    for key in keys:
        value = values.get(key) if named else getattr(values, key, None)
        if value is None:
            continue
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return None
