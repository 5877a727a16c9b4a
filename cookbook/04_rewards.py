"""Rewards: a checklist, an outcome, a penalty and a judge that compares attempts become one reward, and go to other
trainers as well.

The dialogues are made up here; with a store they come from `store.traces()`, and `score_groups(store.traces(), stack,
store=store)` of `cm2_agent` scores them a group at a time. The judge is a function, so that no key is
needed: put the name of a model in its place, `relative("openai:gpt-5-mini")`. `run(graph, tasks, group=8, scorer=stack,
…)` scores and gates new rollouts by the stack.

You should see: 4 attempts: 0.97 0.29 0.00 null
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

from cm2_agent import Checklist, Item, Stack, Trace
from cm2_agent.integrations import art_reward, trace_of_chat, trl_reward, verifiers_reward, verl_reward
from cm2_agent.rewards import add, gate, length_penalty, outcome, penalty, relative

support = Checklist(
    Item("replies", check={"replied": True}),
    Item("gives_the_day", check={"reply_matches": r"(?i)\bmay \d+"}, weight=2),
    name="support",
)


async def judge(prompt: str) -> str:
    """Stands in for a model: it likes attempts that thank the user. Its scores go by id, in whatever order they
    come."""
    ids = re.findall(r"<attempt-(\w+) \w+>\n(.*)", prompt)
    return json.dumps({"scores": [{"id": name, "score": 0.9 if "Thank" in text else 0.2} for name, text in ids]})


stack = Stack(
    gate(outcome("solved")),  # nothing is released unless the desk's own check says so
    add(support, 2),
    add(relative(judge, version="thanks-1"), 1),
    penalty(length_penalty(60, 120, unit="characters"), 0.5),
)

QUESTION = [{"role": "user", "content": "When does order 7 arrive?"}]
ATTEMPTS: list[tuple[str, float | None]] = [
    ("Thank you for asking: it arrives on May 20.", 1.0),
    ("It is on its way.", 1.0),
    ("Thank you for asking: it arrives on May 3.", 0.0),  # what the checklist cannot see, the outcome can
    ("It arrives on May 20.", None),  # nobody could tell whether it was solved: no reward, which is not a reward of 0
]


def elsewhere() -> None:
    """The checklist as a reward in TRL, verifiers, verl and ART: each gets the function that it calls."""
    reply = [{"role": "assistant", "content": "It is on its way."}]
    alone = Stack(support)
    trl = trl_reward(alone)(prompts=[QUESTION], completions=[reply])  # GRPOTrainer(reward_funcs=[trl_reward(alone)], …)
    rubric = asyncio.run(
        verifiers_reward(alone)(prompt=QUESTION, completion=reply, answer="", state={})
    )  # vf.Rubric(funcs=[…])
    verl = verl_reward(alone)("support", "It is on its way.", None, {"prompt": "When does order 7 arrive?"})["score"]
    art = asyncio.run(
        art_reward(alone)([*QUESTION, *reply])
    )  # trajectory.reward = await art_reward(alone)(trajectory.messages())
    print("elsewhere:", *(f"{value:.2f}" for value in (rubric, float(verl), art)), f"and {trl} to TRL")


def main() -> None:
    elsewhere()
    traces: list[Trace] = []
    for number, (text, solved) in enumerate(ATTEMPTS):
        traces.append(replace(trace_of_chat(QUESTION, text, number=number), outcomes={"solved": solved}))
    scores = asyncio.run(stack.score_group(traces))
    for score in scores:
        print(
            {name: None if value is None else round(value, 2) for name, value in score.components.items()},
            score.null_reason or "",
        )
    print("4 attempts:", *("null" if score.reward is None else f"{score.reward:.2f}" for score in scores))


if __name__ == "__main__":
    main()
