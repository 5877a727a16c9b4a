"""What scoring costs: CPU-µs a programmatic verdict and CPU-ms a dialogue of 2 turns × 4 steps × 6 items; CPU-ms of a
turn of many steps whose arguments are looked up in the tools' results; CPU-µs of the next turn of a growing dialogue.
Prints one JSON line.

OMP_NUM_THREADS=1 python tests/bench/bench_rewards.py
"""

from __future__ import annotations

import json
import time

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.trainers.advantage import advantages
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View

DIALOGUES = 2000
GROUP = 8


def told_the_date(view: View) -> bool:
    return any(str(result.get("date")) in view.reply for result in view.results("get_order"))


CHECKLIST = Checklist(
    Item("looked_up", check={"called": "get_order", "with": {"order_id": {"from": "user"}}, "before": "reply"}),
    Item("told", check=told_the_date, depends_on=["looked_up"], weight=2),
    Item("matches", check={"reply_matches": r"(?i)may \d"}, depends_on=["looked_up"]),
    Item("clean", check={"no_tool_error": True}),
    Item("few", check={"at_most": {"get_order": 2}}),
    Item("no_refund", check={"never_called": "refund"}),
)


def dialogue(number: int) -> Trace:
    """Two turns of four steps: three calls and a reply."""
    messages = []
    for turn in range(2):
        messages.append(Message.of("user", f"Where is order {number + turn}?"))
        for step, tool in enumerate(("get_user", "get_order", "get_item")):
            call = ToolCall(id=f"c{step}", name=tool, arguments={"order_id": number + turn})
            answer = ToolCallResponse(id=f"c{step}", response={"date": "May 3", "status": "shipped"})
            messages += [Message.of("assistant", calls=[call]), Message(role="tool", parts=(answer,))]
        messages.append(Message.of("assistant", "It comes on May 3." if (number + turn) % 3 else "I do not know."))
    return Trace.of(Run(id=str(number), messages=tuple(messages)))


def long_turn(steps: int) -> Trace:
    """A turn whose every call has an argument that no tool answered."""
    messages = [Message.of("user", "Where are my orders?")]
    for step in range(steps):
        call = ToolCall(id=str(step), name="get_order", arguments={"order_id": 10**6 + step})
        answer = ToolCallResponse(id=str(step), response={"next": step, "text": "shipped on a Tuesday " * 4})
        messages += [Message.of("assistant", calls=[call]), Message(role="tool", parts=(answer,))]
    return Trace.of(Run(id="long", messages=(*messages, Message.of("assistant", "All on their way."))))


def turn_costs() -> dict[str, float]:
    from_tool = {"called": "get_order", "with": {"order_id": {"from": "tool"}}}
    scorer = ChecklistScorer(Checklist(Item("known", check=from_tool)))
    spent = {}
    for steps in (250, 500, 1000):
        trace = long_turn(steps)
        started = time.process_time()
        scorer.score_sync(trace)
        spent[str(steps)] = round(1e3 * (time.process_time() - started), 2)
    return spent


def growth_costs() -> dict[str, float]:
    """Of the second and of the 160th turn, with the data checks alone: the median of turns beside each."""
    scorer = ChecklistScorer(Checklist(*(item for item in CHECKLIST if item.id != "told")), incremental=True)
    trace, spent = Trace(id="grows", runs=()), []
    for turn in range(165):
        run = dialogue(turn).runs[0]
        started = time.process_time()
        trace = trace.with_run(Run(id=str(turn), thread="grows", messages=run.messages[:8], started=turn + 1))
        scorer.score_sync(trace)
        spent.append(time.process_time() - started)
    return {name: round(1e6 * sorted(spent[at : at + 5])[2]) for name, at in (("2", 1), ("160", 158))}


def main() -> None:
    scorer = ChecklistScorer(CHECKLIST)
    scorer.score_sync(dialogue(0))
    traces = [dialogue(number) for number in range(DIALOGUES)]
    started = time.process_time()
    scores = [scorer.score_sync(trace) for trace in traces]
    scoring = time.process_time() - started
    groups = [scores[at : at + GROUP] for at in range(0, DIALOGUES, GROUP)]
    spent = {}
    for level in ("trajectory", "evidence"):
        started = time.process_time()
        for group in groups:
            advantages(group, level="trajectory" if level == "trajectory" else "evidence")
        spent[level] = time.process_time() - started
    verdicts = sum(len(score.verdicts) for score in scores)
    print(
        json.dumps(
            {
                "bench": "rewards",
                "dialogues": DIALOGUES,
                "verdicts": verdicts,
                "cpu_us_per_verdict": round(1e6 * scoring / verdicts, 2),
                "cpu_ms_per_dialogue": round(1e3 * scoring / DIALOGUES, 3),
                "cpu_us_per_rollout_trajectory": round(1e6 * spent["trajectory"] / DIALOGUES, 1),
                "cpu_us_per_rollout_evidence": round(1e6 * spent["evidence"] / DIALOGUES, 1),
                "cpu_ms_by_steps": turn_costs(),
                "cpu_us_of_turn": growth_costs(),
                "mean_reward": round(sum(score.reward or 0.0 for score in scores) / DIALOGUES, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
