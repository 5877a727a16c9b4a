"""The collator: tensors hold what the rows hold."""

from __future__ import annotations

from cm2_agent.trainers.collator import collate
from cm2_agent.trainers.rows import Row, Span
from tests.trainers.loop import ready


def test_collated_rows_hold_what_the_row_holds() -> None:
    first = Span(start=2, stop=4, turn=0, step=0, logprobs=(-1.0, -2.0), advantage=0.5)
    second = Span(start=5, stop=6, turn=0, step=1, logprobs=(-3.0,), advantage=-1.0)
    row = Row(trace_id="t", ids=(1, 2, 10, 11, 3, 12), spans=(first, second))
    short = Row(
        trace_id="u", ids=(7, 8), spans=(Span(start=1, stop=2, turn=0, step=0, logprobs=(-4.0,), advantage=2.0),)
    )
    batch = collate(ready([row, short]), pad_id=0)
    expected = {
        "prompt_ids": [[1, 2], [0, 7]],
        "prompt_mask": [[1, 1], [0, 1]],
        "completion_ids": [[10, 11, 3, 12], [8, 0, 0, 0]],
        "completion_mask": [[1] * 4, [1, 0, 0, 0]],
        "tool_mask": [[1, 1, 0, 1], [1, 0, 0, 0]],
        "advantages": [[0.5, 0.5, 0, -1], [2, 0, 0, 0]],
        "old_per_token_logps": [[-1, -2, 0, -3], [-4, 0, 0, 0]],
        "num_items_in_batch": 4,
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
