"""Lists of messages as a graph's state holds them: what is the same in two of them, and what a reducer makes of a
node's writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from langgraph.graph.message import REMOVE_ALL_MESSAGES

from cm2_agent.dialects.seen_message import Removal, SeenMessage
from cm2_agent.tracing.state_log import NodeTask


def new_messages(given: Sequence[SeenMessage]) -> list[SeenMessage]:
    """What is new in a graph's input: what follows the assistant's last message, but for the responses of tools that
    the user speaks after, which an earlier run has got."""
    start = next((i + 1 for i in range(len(given) - 1, -1, -1) if given[i].message.role == "assistant"), 0)
    new = list(given[start:])
    if start and any(seen.message.role == "user" for seen in new):
        while new[0].message.role == "tool":
            del new[0]
    return new


def find(state: Sequence[SeenMessage], block: Sequence[SeenMessage]) -> int | None:
    """Where the block last stands in the state; its end where the block is empty."""
    if not block:
        return len(state)
    for start in range(len(state) - len(block), -1, -1):
        if all(state[start + i] is seen or state[start + i].key == seen.key for i, seen in enumerate(block)):
            return start
    return None


def identity_of(seen: SeenMessage) -> Hashable:
    return seen.id or seen.key


def identified(messages: Sequence[SeenMessage], start: int) -> dict[Hashable, SeenMessage]:
    """The messages from `start` on by their identities: ids, or what they say and how often that was said before."""
    out: dict[Hashable, SeenMessage] = {}
    counts: Counter[Hashable] | None = None
    for number in range(start, len(messages)):
        seen = messages[number]
        if seen.id is not None:
            out[seen.id] = seen
            continue
        if counts is None:
            counts = Counter(earlier.key for earlier in messages[:number] if earlier.id is None)
        counts[seen.key] += 1
        out[seen.key if counts[seen.key] == 1 else (seen.key, counts[seen.key])] = seen
    return out


def written_by(task: NodeTask) -> Iterable[SeenMessage]:
    return (item for write, _ in task.writes for item in write if isinstance(item, SeenMessage))


def shown_to(tasks: Iterable[NodeTask]) -> list[SeenMessage] | None:
    """The state that the first of the tasks that was shown one was shown."""
    for task in tasks:
        if task.before is not None:
            return task.before
    return None


def clears(tasks: Iterable[NodeTask]) -> bool:
    """Whether one of the tasks removed all messages at once."""
    for task in tasks:
        for write, _ in task.writes:
            for item in write:
                if isinstance(item, Removal) and item.id == REMOVE_ALL_MESSAGES:
                    return True
    return False


def _repeats(state: Sequence[SeenMessage], write: Sequence[SeenMessage | Removal]) -> bool:
    """Whether a node gives back the whole list with its own messages behind, to a state that has no reducer."""
    return (
        bool(state)
        and len(write) >= len(state)
        and all(
            isinstance(item, SeenMessage) and item.id is None and item.key == seen.key
            for item, seen in zip(write, state, strict=False)
        )
    )


def reduced(state: Sequence[SeenMessage], tasks: Iterable[NodeTask]) -> list[SeenMessage]:
    """The state after the tasks' writes, as LangGraph's reducer of messages makes it."""
    out = list(state)
    for task in tasks:
        for write, replaces in task.writes:
            items = list(write)
            cleared = [
                place
                for place, item in enumerate(items)
                if isinstance(item, Removal) and item.id == REMOVE_ALL_MESSAGES
            ]
            if replaces or cleared or _repeats(out, items):
                out, items = [], items[cleared[-1] + 1 :] if cleared else items
            places: dict[Hashable, int] = {seen.id or seen: place for place, seen in enumerate(out)}
            removed: set[str | None] = set()
            for item in items:
                if isinstance(item, Removal):
                    removed.add(item.id)
                elif (place := places.get(item.id or item)) is not None:
                    out[place] = item
                    removed.discard(item.id)
                else:
                    places[item.id or item] = len(out)
                    out.append(item)
            if removed:
                out = [seen for seen in out if seen.id is None or seen.id not in removed]
    return out


def between_runs(outside: Sequence[SeenMessage]) -> Sequence[SeenMessage]:
    """What somebody wrote into the checkpoint (`update_state`) before the run went on: a user's message, or an answer
    in a tool's place. Where an assistant's is among it, a run elsewhere wrote it."""
    roles = {seen.message.role for seen in outside}
    return outside if roles in ({"user"}, {"tool"}) else ()
