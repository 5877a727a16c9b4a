"""Values checked against the JSON schemas of tools, arguments and results alike. A schema is read once, and what it
refers to is never fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cm2_agent.errors import ToolError
from cm2_agent.types.json_values import JSON


def why_invalid(value: JSON, schema: Mapping[str, JSON], what: str) -> str | None:
    """What is wrong with the value, in a plain sentence; None where it is valid. An empty schema allows everything; one
    without `$schema` is of draft 2020-12. Raises ToolError where `what`'s schema is none, or refers to what it does not
    hold.

    >>> why_invalid({}, {"type": "object", "required": ["order_id"]}, "tool 'get_order'")
    "'order_id' is a required property"
    """
    if not schema:
        return None
    from jsonschema.exceptions import best_match

    try:
        checker = _checker(json.dumps(schema))
        found = best_match(checker.iter_errors(value))
    except ToolError as error:
        raise ToolError(f"{what} has a JSON schema that cannot be used: {error}") from error
    except Exception as error:  # a reference that cannot be resolved comes in many classes
        raise ToolError(
            f"{what} has a JSON schema that cannot be used: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if found is None:
        return None
    place = ".".join(str(part) for part in found.absolute_path)
    return f"{place}: {found.message[:300]}" if place else str(found.message[:300])


@lru_cache(maxsize=1024)
def _checker(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    body = json.loads(schema)
    kind = validator_for(body, default=Draft202012Validator)
    try:
        kind.check_schema(body)
    except SchemaError as error:
        raise ToolError(error.message[:200]) from error
    return kind(body, registry=Registry())


__all__ = ["why_invalid"]
