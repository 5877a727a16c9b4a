"""The entities of a task: the ids in its recorded calls, as `order:7`.

An id is the value of an argument, or of a key in a JSON result, whose name one of `keys` fits (`order_id: 7`,
`orderIds: [7]`, `flight_number`). Ids that stand in plain words alone are not seen, and `user_id` and `customer_id` are
two names: what two tasks share must be called the same. A bare `id` is named after the object or list that it stands in
(`{"orders": [{"id": 7}]}` is `order:7`), `id:7` where there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.task import Task

KEYS: tuple[str, ...] = ("id", "*_id", "*_ids", "*_number", "*_numbers", "*_no")
"""The names under which an id stands by default; `*` is anything."""
_ENDINGS = ("_ids", "_id", "_numbers", "_number", "_no")
_LONGEST = 100


def entities_of(task: Task, keys: Sequence[str] = KEYS) -> tuple[str, ...]:
    """The entities of a task's recorded calls, in order of their names; values in lower case, since ids are typed as
    one likes.

    >>> from cm2_agent import RecordedCall
    >>> call = RecordedCall(name="get", arguments={"order_id": 7}, result='{"user": {"id": "Ada"}}')
    >>> entities_of(Task(id="t", recorded=[call]))
    ('order:7', 'user:ada')
    """
    found: set[str] = set()
    for call in task.recorded:
        found.update(_entities(call.arguments, keys))
        for answer in _answers(call.result):
            found.update(_entities(answer, keys))
    return tuple(sorted(found))


def _answers(result: JSON) -> Iterator[JSON]:
    """The JSON in a result: what a text spells, and the texts of content blocks."""
    if isinstance(result, str):
        try:
            yield json.loads(result)
        except (ValueError, RecursionError):
            return
    elif isinstance(result, list):
        for block in result:
            text = block.get("text") if isinstance(block, Mapping) else None
            yield from _answers(text) if isinstance(text, str) else (block,)
    elif result is not None:
        yield result


def _entities(value: JSON, keys: Sequence[str]) -> Iterator[str]:
    names: dict[tuple[str, str], str | None] = {}
    waiting: list[tuple[JSON, str, str]] = [(value, "", "")]
    while waiting:
        inner, around, beyond = waiting.pop()
        if isinstance(inner, Mapping):
            for key, item in inner.items():
                place = (str(key), around)
                if place not in names:
                    names[place] = _name(*place, keys)
                name = names[place]
                if name is not None:
                    for spelled in filter(None, map(_spelled, item if isinstance(item, list) else [item])):
                        by_id = (
                            spelled == around.casefold()
                        )  # {"orders": {"7": {"id": "7"}}}: named after what lies under its id
                        yield f"{_name(str(key), beyond, keys) if by_id else name}:{spelled}"
                if isinstance(item, Mapping | list):
                    waiting.append((item, str(key), around))
        elif isinstance(inner, list):
            waiting += [(item, around, beyond) for item in inner if isinstance(item, Mapping | list)]


def _name(key: str, around: str, keys: Sequence[str]) -> str | None:
    """What an id under this key is the id of; None where none stands there."""
    snake = _snake(key)
    if not any(fnmatchcase(snake, _snake(pattern)) for pattern in keys):
        return None
    if snake == "id":
        return _snake(around).removesuffix("s") or "id"
    ending = next((ending for ending in _ENDINGS if snake.endswith(ending) and len(snake) > len(ending)), "")
    return snake.removesuffix(ending)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:200]).replace("-", "_").lower()


def _spelled(value: JSON) -> str | None:
    if isinstance(value, bool) or value is None or isinstance(value, Mapping | list):
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    text = " ".join(str(value).split()).casefold()
    return text if len(text) <= _LONGEST else content_hash(text)[:32]


def matches(entity: str, ignore: Iterable[str]) -> bool:
    """Whether one of `ignore` names the entity: `flight` (every one of that name), `flight:hat001`, or a pattern such
    as `flight:hat*`."""
    name = entity.partition(":")[0]
    return any(fnmatchcase(entity if ":" in one else name, one.casefold()) for one in ignore)


__all__ = ["KEYS", "entities_of", "matches"]
