"""The dialogues of a named run that are under way, as the store keeps them; apart from the rollouts, which only ask to
go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cm2_agent.models.batching import current_seat
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.trace import Run

if TYPE_CHECKING:
    from cm2_agent.graphs.conversation import End, Talk
    from cm2_agent.store import SQLStore


def can_be_brought_back(part: Any) -> bool:
    """Whether a world, or a dialogue's backends, can say what it has been through and take it up in another process."""
    return callable(getattr(part, "state", None)) and callable(getattr(part, "restore", None))


class Kept:
    """The dialogues of one run that are under way, as the store keeps them."""

    def __init__(self, store: SQLStore, prefix: str) -> None:
        from cm2_agent.graphs.conversation import dialogue, machine_config

        self._checkpointer = store.checkpointer(steps_only=True)
        self._machine = dialogue(self._checkpointer)
        self._config = machine_config
        ours = self._thread(prefix)
        self._under_way = {thread for thread in self._checkpointer.pending() if thread.startswith(ours)}

    def _thread(self, thread: str) -> str:
        return str(self._config(thread)["configurable"]["thread_id"])

    def forget(self, thread: str) -> None:
        """The dialogue is stored: what was kept of it goes."""
        name = self._thread(thread)
        if name in self._under_way:
            self._checkpointer.delete_thread(name)
            self._under_way.discard(name)

    async def converse(
        self, talk: Talk, facts: Mapping[str, JSON], parts: Sequence[Any], runs: dict[str, list[Run]]
    ) -> End:
        """The dialogue from where it was left, or from its beginning where that was another dialogue (other tools,
        other gate)."""
        from cm2_agent.graphs.conversation import End, converse
        from cm2_agent.graphs.conversation_state import WrittenRuns, load

        name, mark = self._thread(talk.thread), content_hash(dict(facts))
        state = (await self._machine.aget_state(self._config(talk.thread))).values if name in self._under_way else {}
        if state and (state.get("facts") != mark or state.get("said") is None):
            self._checkpointer.delete_thread(name)
            state = {}
        given, written = 0, WrittenRuns()
        if state:
            before = [written.read(load(blob)) for blob in state["runs"]]
            runs[talk.thread] = before
            given = len(before)
            for part, left in zip(parts, load(state["memory"]), strict=True):
                part.restore(left)
            seat = current_seat()
            if seat is not None:
                for _ in range(sum(len(run.calls) for run in before)):
                    seat.next_seed()

        def keep() -> tuple[list[JSON], JSON]:
            nonlocal given
            new = runs.get(talk.thread, [])[given:]
            given += len(new)
            return [written.write(run) for run in new], [part.state() for part in parts]

        talk.keep = keep
        self._under_way.add(name)
        if state.get("end") is not None:  # it had ended, and was not stored yet
            return End.from_json(state["end"])
        return await converse(talk, self._machine, facts=mark, resumed=bool(state))


__all__ = ["Kept", "can_be_brought_back"]
