"""A named run's unfinished dialogues, as the store's checkpointer holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cm2_agent.models.batching import current_seat
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.run import Run

if TYPE_CHECKING:
    from cm2_agent.graphs.conversation_setup import ConversationSetup, Ending
    from cm2_agent.store import SQLStore


def is_resumable(part: Any) -> bool:
    """Whether a world, or a dialogue's backends, can be taken up in another process: it has `state()` and
    `restore(state)`."""
    return callable(getattr(part, "state", None)) and callable(getattr(part, "restore", None))


class ResumableRuns:
    """The unfinished dialogues of one run, as the store's checkpointer holds them."""

    def __init__(self, store: SQLStore, prefix: str) -> None:
        from cm2_agent.graphs.conversation import conversation_graph, machine_config

        self._checkpointer = store.checkpointer(steps_only=True)
        self._machine = conversation_graph(self._checkpointer)
        self._config = machine_config
        threads = self._thread(prefix)
        self._under_way = {thread for thread in self._checkpointer.pending() if thread.startswith(threads)}

    def _thread(self, thread: str) -> str:
        return str(self._config(thread)["configurable"]["thread_id"])

    def take_over(self, thread: str) -> None:
        """Another process had begun the dialogue: it may have left checkpoints."""
        self._under_way.add(self._thread(thread))

    def forget(self, thread: str) -> None:
        """The dialogue is stored: its checkpoints go."""
        name = self._thread(thread)
        if name in self._under_way:
            self._checkpointer.delete_thread(name)
            self._under_way.discard(name)

    async def converse(
        self, setup: ConversationSetup, facts: Mapping[str, JSON], parts: Sequence[Any], runs: dict[str, list[Run]]
    ) -> Ending:
        """The dialogue from where it was left, or from its beginning where that was another dialogue (other tools,
        other gate)."""
        from cm2_agent.graphs.conversation import converse
        from cm2_agent.graphs.conversation_setup import Ending
        from cm2_agent.graphs.conversation_state import RunEncoder, load

        name, mark = self._thread(setup.thread), content_hash(dict(facts))
        state = (await self._machine.aget_state(self._config(setup.thread))).values if name in self._under_way else {}
        if state and (state.get("facts") != mark or state.get("said") is None):
            self._checkpointer.delete_thread(name)
            state = {}
        saved, encoder = 0, RunEncoder()
        if state:
            before = [encoder.read(load(blob)) for blob in state["runs"]]
            runs[setup.thread] = before
            saved = len(before)
            for part, left in zip(parts, load(state["memory"]), strict=True):
                part.restore(left)
            seat = current_seat()
            if seat is not None:
                for _ in range(sum(len(run.calls) for run in before)):
                    seat.next_seed()

        def checkpoint() -> tuple[list[JSON], JSON]:
            nonlocal saved
            new = runs.get(setup.thread, [])[saved:]
            saved += len(new)
            return [encoder.write(run) for run in new], [part.state() for part in parts]

        setup.checkpoint = checkpoint
        self._under_way.add(name)
        if state.get("end") is not None:  # it had ended, and was not stored yet
            return Ending.from_json(state["end"])
        return await converse(setup, self._machine, facts=mark, resumed=bool(state))


__all__ = ["ResumableRuns", "is_resumable"]
