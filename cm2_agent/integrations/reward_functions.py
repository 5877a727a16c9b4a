"""CM2's rewards in other people's trainers: TRL, verifiers, verl and ART.

Each of them calls a function of its own shape; what is here gives it that function, which reads the chat into a trace
and asks a scorer. None of these packages is imported. The reward is the score's lower bound, in which what the policy
kept from being judged is unpaid (`Score.lower`). A pending score is never a number: TRL is given None (it leaves such a
completion out), the others, which know no such thing, an exception.

    GRPOTrainer(model, reward_funcs=trl_reward(Stack(support)), train_dataset=…, args=…)      # TRL
    vf.Rubric(funcs=[verifiers_reward(Stack(support))])                                        # verifiers
    compute_score = verl_reward(Stack(support))  # verl: custom_reward_function.path
    trajectory.reward = await art_reward(Stack(support))(trajectory.messages())                # ART
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cm2_agent.errors import JudgeError, TraceError
from cm2_agent.importers.openai_messages import read_messages, run_of
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.protocols import Scorer
from cm2_agent.types.run_attributes import TASK_ID, TASK_TURNS, TASK_VERSION
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

T = TypeVar("T")
Chat = str | Sequence[Mapping[str, JSON]]
"""Messages in OpenAI's chat format, or a text: the user's where it is a prompt, the assistant's where it is a
completion."""


def trace_of_chat(
    prompt: Chat, completion: Chat, *, id: str | None = None, task: Task | None = None, number: int = 0
) -> Trace:
    """A chat as a trace: the messages of the prompt, then those of the completion.

    Args:
        prompt: Messages in OpenAI's chat format, or the user's text.
        completion: Messages in the same format, or the assistant's text.
        id: The trace's id. None: a hash of the messages and `number`.
        task: The task that the trace belongs to, which its run then names.
        number: Tells equal chats apart, such as the rollouts of a group.

    Raises:
        TraceError: A message that cannot be read, by its place.

    >>> from cm2_agent.integrations import trace_of_chat
    >>> trace = trace_of_chat("Where is order 7?", "It was shipped.", id="t")
    >>> [(message.role, message.text) for message in trace.messages]
    [('user', 'Where is order 7?'), ('assistant', 'It was shipped.')]
    """
    messages = [*_chat(prompt, "user"), *_chat(completion, "assistant")]
    name = id or f"chat-{content_hash([messages, number])[:20]}"
    attributes = {} if task is None else {TASK_ID: task.id, TASK_VERSION: task.version, TASK_TURNS: task.scripted_turns}
    return Trace.of(run_of(name, read_messages(messages), name="chat", attributes=attributes))


def trl_reward(
    scorer: Scorer, *, task: Callable[[Mapping[str, Any]], Task | None] | None = None
) -> Callable[..., list[float | None]]:
    """A reward function for TRL's GRPOTrainer and RLOOTrainer: `(prompts, completions, **columns) -> rewards`.

    It reads TRL's conversational format and its text format. Completions of equal prompts are scored together, as a
    `Stack` that compares rollouts needs. A pending reward becomes None, which TRL (1.16) leaves out of the group's mean
    and gives no advantage.

        GRPOTrainer(model, reward_funcs=trl_reward(Stack(support)), train_dataset=…, args=…)

    Args:
        scorer: A `Stack`, or any scorer.
        task: Makes the Task of a row from a dict of the data set's other columns. None: no task, so the scorer needs a
            checklist of its own.

    Raises:
        TraceError: When called: a message that cannot be read, or not one prompt a completion.

    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.integrations import trl_reward
    >>> support = Checklist(Item("no_promise", check={"reply_matches": "refund"}, kind="avoid"), name="support")
    >>> reward = trl_reward(Stack(support))
    >>> reward(prompts=["Where is order 7?"] * 2, completions=["It was shipped.", "You get a refund!"])
    [1.0, 0.0]
    """

    def reward(*, prompts: Sequence[Chat], completions: Sequence[Chat], **columns: Any) -> list[float | None]:
        rows = [
            {
                name: values[at]
                for name, values in columns.items()
                if isinstance(values, list) and len(values) == len(prompts)
            }
            for at in range(len(prompts))
        ]
        return [score.lower for score in run_now(_scores(scorer, prompts, completions, rows, task))]

    reward.__name__ = "cm2_reward"  # TRL logs a reward under the function's name
    return reward


def verifiers_reward(
    scorer: Scorer, *, task: Callable[[Mapping[str, Any]], Task | None] | None = None
) -> Callable[..., Coroutine[Any, Any, float]]:
    """A reward function for a rubric of verifiers: `async (prompt, completion, answer, state, **kwargs) -> float`.

        vf.Rubric(funcs=[verifiers_reward(Stack(support))])

    Args:
        scorer: A `Stack`, or any scorer.
        task: Makes the Task from a dict of the other arguments (`answer`, `state`, `info`, `task`). None: no task.

    Raises:
        JudgeError: When called: the reward is pending. verifiers fails the rollout then, so it is not trained on.
        TraceError: When called: a message that cannot be read.

    >>> import asyncio
    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.integrations import verifiers_reward
    >>> reward = verifiers_reward(Stack(Checklist(Item("replies", check={"replied": True}), name="support")))
    >>> asyncio.run(reward("Where is order 7?", "It was shipped.", answer=None, state={}))
    1.0
    """

    async def cm2_reward(prompt: Chat, completion: Chat, answer: Any = None, state: Any = None, **kwargs: Any) -> float:
        fields = {"answer": answer, "state": state, **kwargs}
        (score,) = await _scores(scorer, [prompt], [completion], [fields], task)
        return _number(score)

    return cm2_reward


def verl_reward(
    scorer: Scorer, *, task: Callable[[Mapping[str, Any]], Task | None] | None = None
) -> Callable[..., dict[str, float | str]]:
    """A `compute_score` for verl: `(data_source, solution_str, ground_truth, extra_info) -> {"score": reward, …}`.

    A stack's components stand beside the score as `cm2/NAME`. verl gives the decoded completion alone; the prompt is
    `extra_info["prompt"]` (a text or messages) where the data set puts it there, else empty. Name the function in
    `custom_reward_function.path` and `.name`.

    Args:
        scorer: A `Stack`, or any scorer.
        task: Makes the Task from a dict of `data_source`, `ground_truth`, `extra_info` and other keywords. None: no
            task.

    Raises:
        JudgeError: When called: the reward is pending; verl has no way to leave a completion out.

    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.integrations import verl_reward
    >>> compute_score = verl_reward(Stack(Checklist(Item("replies", check={"replied": True}), name="support")))
    >>> compute_score("shop", "It was shipped.", extra_info={"prompt": "Where is order 7?"})
    {'score': 1.0}
    """

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, float | str]:
        extra = dict(extra_info or {})
        fields = {"data_source": data_source, "ground_truth": ground_truth, "extra_info": extra, **kwargs}
        (score,) = run_now(_scores(scorer, [extra.get("prompt", "")], [solution_str], [fields], task))
        components = {f"cm2/{name}": value for name, value in score.components.items() if value is not None}
        return {"score": _number(score), **components}

    return compute_score


def art_reward(scorer: Scorer) -> Callable[..., Coroutine[Any, Any, float]]:
    """A reward function for ART's trajectories: `async (messages, task=None) -> float`, messages in the chat format.

        trajectory.reward = await reward(trajectory.messages())

    For a stack that compares rollouts use `art_group_reward`.

    Raises:
        JudgeError: When called: the reward is pending. `art.gather_trajectory_groups` counts a rollout function that
            raises as failed and leaves it out.

    >>> import asyncio
    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.integrations import art_reward
    >>> reward = art_reward(Stack(Checklist(Item("replies", check={"replied": True}), name="support")))
    >>> asyncio.run(reward([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]))
    1.0
    """

    async def reward(messages: Sequence[Mapping[str, JSON]], task: Task | None = None) -> float:
        return _number(await scorer(trace_of_chat(messages, [], task=task), task))

    return reward


def art_group_reward(scorer: Scorer) -> Callable[..., Coroutine[Any, Any, list[float | None]]]:
    """A reward function for a group of ART's trajectories at once: `async ([messages, …], task=None) -> rewards`.

    The rewards are in the order of the trajectories; leave out of the group what is None. It takes the place of
    `ruler_score_group`.

    >>> import asyncio
    >>> from cm2_agent import Checklist, Item, Stack
    >>> from cm2_agent.integrations import art_group_reward
    >>> reward = art_group_reward(Stack(Checklist(Item("replies", check={"replied": True}), name="support")))
    >>> asked = {"role": "user", "content": "Hi"}
    >>> asyncio.run(reward([[asked, {"role": "assistant", "content": "Hello!"}], [asked]]))
    [1.0, None]
    """

    async def reward(group: Sequence[Sequence[Mapping[str, JSON]]], task: Task | None = None) -> list[float | None]:
        traces = [trace_of_chat(messages, [], task=task, number=number) for number, messages in enumerate(group)]
        return [score.lower for score in await _of_group(scorer, traces, task)]

    return reward


async def _scores(
    scorer: Scorer,
    prompts: Sequence[Chat],
    completions: Sequence[Chat],
    rows: Sequence[Mapping[str, Any]],
    task: Callable[[Mapping[str, Any]], Task | None] | None,
) -> list[Score]:
    """Every completion's score, those of equal prompts and tasks scored together."""
    if len(prompts) != len(completions):
        raise TraceError(
            f"{len(prompts)} prompts were given with {len(completions)} completions; expected one prompt a completion"
        )
    tasks = [None if task is None else task(row) for row in rows]
    traces = [
        trace_of_chat(prompt, completion, task=own, number=number)
        for number, (prompt, completion, own) in enumerate(zip(prompts, completions, tasks, strict=True))
    ]
    groups: dict[str, list[int]] = {}
    for at, (prompt, own) in enumerate(zip(prompts, tasks, strict=True)):
        groups.setdefault(
            content_hash([_chat(prompt, "user"), None if own is None else [own.id, own.version]]), []
        ).append(at)
    found: dict[int, Score] = {}
    for members in groups.values():
        scores = await _of_group(scorer, [traces[at] for at in members], tasks[members[0]])
        found.update(zip(members, scores, strict=True))
    return [found[at] for at in range(len(traces))]


async def _of_group(scorer: Scorer, traces: Sequence[Trace], task: Task | None) -> list[Score]:
    together: Any = getattr(scorer, "score_group", None)
    if together is not None:
        return list(await together(traces, task))
    return list(await asyncio.gather(*(scorer(trace, task) for trace in traces)))


def _chat(chat: Chat, role: str) -> list[dict[str, JSON]]:
    if isinstance(chat, str):
        return [{"role": role, "content": chat}] if chat or role == "assistant" else []
    return [dict(message) for message in chat]


def _number(score: Score) -> float:
    if score.lower is None:
        why = f"{score.null_reason or 'unscored'} ({score.reward_version})"
        raise JudgeError(f"the dialogue has no reward: {why}; it must not be trained on: leave it out")
    return score.lower


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result from sync code, whether or not this thread has an event loop that runs (a notebook's,
    Ray's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


__all__ = [
    "art_group_reward",
    "art_reward",
    "run_now",
    "trace_of_chat",
    "trl_reward",
    "verifiers_reward",
    "verl_reward",
]
