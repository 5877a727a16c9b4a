"""Guard: strict items keep a live agent's replies, and what was rejected becomes training data.

The model below is a script that promises a refund, which no tool gave, before it says what it knows. The guard tells it
what failed and asks again; the user sees the second answer alone. `watch` stores the dialogue with what was rejected,
and `dpo_pairs` makes pairs of both for TRL's DPOTrainer. With `on_violation="block"` the guard answers in its place,
with "best_of" it takes the best of n.

You should see: 1 pair for DPO
"""

from __future__ import annotations

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from cm2_agent import Checklist, Item, SQLStore, flush, guard, watch
from cm2_agent.graphs import agent
from cm2_agent.trainers import dpo_pairs

support = Checklist(
    Item(
        "no_promise",
        "Is a refund promised?",
        check={"reply_matches": "(?i)refund"},
        kind="avoid",
        required_for_next_turn=True,
    ),
    Item("replies", check={"replied": True}),
    name="support",
)


def main() -> None:
    model = GenericFakeChatModel(
        messages=iter([AIMessage("You get a full refund!"), AIMessage("It was shipped yesterday.")])
    )
    graph = watch(guard(agent(model, []), support, on_violation="retry", n=2), support, store="sqlite:///guard.db")
    state = graph.invoke({"messages": [("user", "Where is order 7?")]})
    print("the user sees:", state["messages"][-1].content)
    flush()
    pairs = list(dpo_pairs(SQLStore("sqlite:///guard.db").traces()))
    for pair in pairs:
        print("chosen:", pair["chosen"][-1]["content"], "| rejected:", pair["rejected"][-1]["content"])
    print(len(pairs), "pair for DPO")


if __name__ == "__main__":
    main()
