"""Labels in the store, on both databases: strange text, changed minds, traces that are not there."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.store import SQLStore
from cm2_agent.types.human_labels import Label
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import TASK_ID
from tests.fuzzing import examples
from tests.strategies import maybe, names, texts

LABELS = st.builds(
    Label,
    trace_id=names(),
    item=names(),
    rater=names(),
    value=maybe(st.booleans()),
    turn=maybe(st.integers(0, 2**31 - 1)),
    task=maybe(texts()),
    note=maybe(texts()),
)


def place(label: Label) -> tuple[str, str, int | None, str]:
    return label.trace_id, label.item, label.turn, label.rater


@settings(max_examples=examples(20))
@given(st.lists(LABELS, max_size=6, unique_by=place))
def test_labels_come_back_as_they_were(store_url: str, labels: list[Label]) -> None:
    with SQLStore(store_url) as store:
        store.save_labels(labels)
        counts = store.save_labels(labels)
        assert (counts.new, counts.changed, counts.same) == (0, 0, len(labels))
        kept = {place(label): label for label in store.labels()}
        assert [kept[place(label)] for label in labels] == labels


def test_a_rater_may_change_their_mind(store_url: str) -> None:
    first = Label(trace_id="t", item="told", rater="ann", value=True, turn=0)
    with SQLStore(store_url) as store:
        counts = store.save_labels([first, replace(first, turn=None), replace(first, rater="bob", value=None)])
        assert (counts.new, counts.changed, counts.same, counts.without_trace) == (3, 0, 0, 3)
        counts = store.save_labels([replace(first, value=False), replace(first, turn=None)])
        assert (counts.new, counts.changed, counts.same) == (0, 1, 1)
        assert [label.value for label in store.labels(rater="ann")] == [True, False]
        assert store.labels(rater="bob")[0].value is None
        assert store.labels(rater="nobody") == []


def test_tasks_are_those_of_the_stored_traces(store_url: str) -> None:
    with SQLStore(store_url) as store:
        store.save_runs([Run(id="a", attributes={TASK_ID: "t1"}), Run(id="b"), Run(id="c", attributes={TASK_ID: "t2"})])
        counts = store.save_labels(
            [Label(trace_id=id, item="told", rater="ann", value=True) for id in ("a", "b", "elsewhere")]
        )
        assert counts.without_trace == 1
        assert store.labelled_tasks() == {"a": "t1", "b": None}
