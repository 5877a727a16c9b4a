"""Score your own stored traces with a hosted judge: one call a turn, every yes backed by a quote, verdicts cached,
within a budget.

    OPENAI_API_KEY=… python cookbook/07_judge.py sqlite:///cm2.db support.yaml

Run it again and nothing is asked twice. You should see the mean reward last, such as: mean reward 0.81 of 120 traces
"""

import asyncio
import sys

from cm2_agent import LLMJudge, SQLStore, score_traces


async def main(url: str, checklist: str) -> None:
    store = SQLStore(url)
    judge = LLMJudge("openai-chat:gpt-5-mini", budget_usd=5.0, cache=store.verdict_cache())
    rewards = []
    async for trace, score in score_traces(store.traces(), checklist, judge=judge, store=store):
        print(trace.id, score.reward, score.null_reason or "")
        rewards += [score.reward] if score.reward is not None else []
    print(judge.usage)
    print(f"mean reward {sum(rewards) / max(1, len(rewards)):.2f} of {len(rewards)} traces")


asyncio.run(main(*sys.argv[1:3]))
