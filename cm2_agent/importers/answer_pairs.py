"""Records that hold what was asked and what was answered: prompt and completion, stored completions, preference pairs,
batch output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, mapping_of, number_of, sampling_of, text_of, texts_of
from cm2_agent.importers.message_styles import any_messages, style_of
from cm2_agent.importers.openai_chat import gemini_instruction
from cm2_agent.importers.openai_messages import read_tools
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.messages import Message

PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("user", "assistant"),
    ("inputs", "targets"),
)
"""The keys under which a question and its answer stand."""
STORED: Final = (
    ("input", "output"),
    ("request", "response"),
    ("input_messages", "output_messages"),
)
"""The keys under which a request and its response stand."""
_READ: Final = frozenset(
    {"system", "system_prompt", "history", "metadata", "tools", "model", "reward", "task_id"}
    | {"id", "user_id", "tags", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"}
)
"""Keys beside a question and its answer that have a place of their own; others (a context, a category) are metadata."""
PREFERENCES: Final = (("preferred_output", "non_preferred_output"), ("chosen", "rejected"))
"""The keys under which the better and the worse answer stand."""


def pair_of(record: JSON) -> tuple[str, str] | None:
    """The keys of the question and the answer that the record holds, None where it holds none."""
    if not isinstance(record, Mapping):
        return None
    return next((pair for pair in PAIRS if all(_is_said(record.get(key)) for key in pair)), None)


def preference_of(record: JSON) -> tuple[str, str] | None:
    """The keys of the better and the worse answer, None where the record holds none."""
    if not isinstance(record, Mapping):
        return None
    return next((pair for pair in PREFERENCES if all(_is_said(record.get(key)) for key in pair)), None)


def _is_said(value: JSON) -> bool:
    return (isinstance(value, str) and bool(value)) or style_of(value) is not None or _one(value) is not None


def _one(value: JSON) -> list[JSON] | None:
    """A message that stands alone, as a list."""
    return [value] if isinstance(value, Mapping) and style_of([value]) is not None else None


def said(value: JSON, role: str) -> tuple[Message, ...]:
    """What stands under a key as messages: a text is said by `role`."""
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        return any_messages([{"role": role, "content": value}])
    return any_messages(_one(value) or value)


def read_prompt_completion(record: JSON) -> Chat:
    """A question and its answer, as texts or as messages. Raises TraceError."""
    pair = pair_of(record)
    if pair is None:
        raise TraceError(f"holds no question with its answer; expected {' or '.join('/'.join(pair) for pair in PAIRS)}")
    asked, answered = record[pair[0]], record[pair[1]]
    if pair[0] == "instruction" and isinstance(record.get("input"), str) and record["input"]:  # Alpaca's
        asked = f"{asked}\n\n{record['input']}"
    system = said(record.get("system") or record.get("system_prompt"), "system")
    before = _earlier(record.get("history"))
    chat = _chat(record, (*system, *before, *said(asked, "user"), *said(answered, "assistant")), "completion")
    about = pair[0] == "instruction" and isinstance(record.get("input"), str)
    return replace(chat, metadata=_beside(record, *pair, *(["input"] if about else [])))


def _beside(record: Mapping[str, JSON], *read: str) -> dict[str, JSON]:
    """The record's metadata, with what it holds under keys that nothing reads."""
    known = {*read, *_READ, *(["label"] if isinstance(record.get("label"), bool) else [])}
    others = {key: value for key, value in record.items() if key not in known and value is not None}
    return {**others, **mapping_of(record.get("metadata"))}


def _earlier(history: JSON) -> tuple[Message, ...]:
    """The turns before, as Alpaca's kind writes them: pairs of a question and its answer. Raises TraceError."""
    turns = history if isinstance(history, list) else [] if history is None else [history]
    found: list[Message] = []
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(one, str) for one in turn):
            raise TraceError(f"has in history {str(turn)[:60]!r}; expected pairs of a question and its answer")
        found += [*said(turn[0], "user"), *said(turn[1], "assistant")]
    return tuple(found)


def read_stored_completion(record: JSON) -> Chat | tuple[Chat, ...]:
    """A request and its response: `input` and `output` (stored completions, items of an evaluation's run), or `request`
    and `response` (logs of gateways). Raises TraceError."""
    if not isinstance(record, Mapping):
        raise TraceError(f"is {type(record).__name__}; expected an object with input and output")
    sample = mapping_of(record.get("sample")) or record
    if "input_messages" in sample:
        sample = {**sample, "input": sample["input_messages"], "output": sample.get("output_messages")}
    asked, answered = (
        (sample.get("input"), sample.get("output"))
        if "output" in sample
        else (sample.get("request", sample.get("input")), sample.get("response", sample))
    )
    if (
        not answered
        and record.get("response", answered) is answered
        and (why := record.get("error") or record.get("status"))
    ):
        raise TraceError(f"the request failed: {str(why)[:120]}; there is no answer to import")
    body = mapping_of(asked) if isinstance(asked, Mapping) else sample
    if isinstance(asked, Mapping) and "messages" in asked:
        asked = asked["messages"]
    elif isinstance(asked, Mapping) and "input" in asked:
        asked = asked["input"]
    elif isinstance(asked, Mapping) and "contents" in asked:  # Gemini's
        asked = asked["contents"]
    question = said(asked, "user")
    if question[:1] and question[0].role != "system":
        question = (*_system(sample if body is sample else {**body, **_only(sample, "instructions")}), *question)
    graded = _graded(record) if "results" in record else {}
    if "results" not in record and not {"object", "sample", "choices", "stop_reason"} & record.keys():
        graded = {"metadata": _beside(record, "instructions", *chain.from_iterable(STORED))}
    return _each_answer(
        [
            replace(_chat(record, (*question, *answer), "completion", settings=body), **graded)
            for answer in answers_of(answered)
        ]
    )


def _only(record: Mapping[str, JSON], key: str) -> dict[str, JSON]:
    return {key: record[key]} if record.get(key) else {}


def _system(body: Mapping[str, JSON]) -> tuple[Message, ...]:
    """The system prompt that a request holds beside its messages. Raises TraceError."""
    found = body.get("instructions") or body.get("system")
    if isinstance(found, str) or style_of(found) is not None:
        return said(found, "system")
    if isinstance(found, list):  # Anthropic's blocks
        return any_messages([{"role": "system", "content": found}])
    return gemini_instruction(body)


def _each_answer(chats: list[Chat]) -> Chat | tuple[Chat, ...]:
    """The dialogues of a request's answers: equal ones of several are samples still."""
    if len(chats) == 1:
        return chats[0]
    return tuple(replace(chat, key=[chat.key, number]) for number, chat in enumerate(chats))


def _graded(record: Mapping[str, JSON]) -> dict[str, Any]:
    """What an item of an evaluation's run holds beside its sample: the item itself, and whether each grader passed."""
    item = record.get("datasource_item", record.get("item"))
    results = record["results"] if isinstance(record["results"], list) else []
    passed = {str(one.get("name")): one.get("passed") for one in map(mapping_of, results)}
    return {
        "outcomes": {name: float(value) for name, value in passed.items() if isinstance(value, bool)},
        "metadata": {"item": item} if isinstance(item, Mapping) else {},
    }


def answers_of(body: JSON) -> list[tuple[Message, ...]]:
    """Each of a model's answers to one request: those of a chat completion with several choices (`n`), or the one.
    Raises TraceError."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    candidates = body.get("candidates") if isinstance(body, Mapping) else None
    if isinstance(candidates, list) and candidates:  # Gemini's; one that was blocked holds no content
        contents = [mapping_of(mapping_of(one).get("content")) for one in candidates]
        return [any_messages([{**one, "role": "model"}]) if one.get("parts") else () for one in contents]
    if isinstance(choices, list) and len(choices) > 1:
        return [answer_of({"choices": [choice]}) for choice in choices]
    return [answer_of(body)]


def answer_of(body: JSON) -> tuple[Message, ...]:
    """What a model answered: text, messages, a chat completion (its first choice), a response of the Responses API, a
    message of Anthropic's. Raises TraceError."""
    if isinstance(body, Mapping):
        choices = body.get("choices")
        if isinstance(choices, list) and choices:
            first = mapping_of(choices[0])
            return said(first.get("message", first.get("text")), "assistant")
        if isinstance(body.get("output"), list):
            return any_messages(body["output"])
        if isinstance(body.get("content"), list | str) and body.get("role", "assistant") == "assistant":
            return any_messages([{**body, "role": "assistant"}])
    return said(body, "assistant")


def read_batch_output(record: JSON) -> Chat | tuple[Chat, ...]:
    """A line of a batch's output file: the answer to a request that stands in the batch's input file. Raises
    TraceError, also for a request that failed."""
    if not isinstance(record, Mapping):
        raise TraceError(f"is {type(record).__name__}; expected an object with custom_id and response")
    response = mapping_of(record.get("response") or record.get("result"))
    code = response.get("status_code")
    error = record.get("error") or mapping_of(response.get("body")).get("error") or response.get("error")
    if error or (isinstance(code, int) and code >= 400):
        status = "" if code is None else f" (status {code})"
        raise TraceError(f"the request failed{status}: {str(error)[:120]}; there is no answer to import")
    body = response if "candidates" in response else response.get("body", response.get("message"))
    if body is None and {"body", "params"} & record.keys():
        raise TraceError("is a request of a batch's input file, and no answer; import the batch's output file")
    answers = answers_of(body)
    if not all(answers):
        raise TraceError("holds no answer; expected response.body with choices or output")
    note = "a batch's output file holds the answers alone: what was asked stands in its input file"
    return _each_answer([_chat(record, one, "batch", settings=mapping_of(body), note=note) for one in answers])


def read_preferences(record: JSON) -> tuple[Chat, ...]:
    """A pair of answers to one question: two rollouts of one task, the better with reward 1, the worse with 0. Raises
    TraceError."""
    pair = preference_of(record)
    if pair is None:
        raise TraceError(f"holds no pair of answers; expected {' or '.join('/'.join(pair) for pair in PREFERENCES)}")
    place = next((key for key in ("input", "prompt", "conversations") if key in record), "prompt")
    shared = record.get(place)
    tools = mapping_of(shared).get("tools", record.get("tools"))
    if isinstance(shared, Mapping) and "messages" in shared:
        shared = shared["messages"]
    system, question = said(record.get("system"), "system"), said(shared, "user")
    whole = all(_begins(_spoken(record[key]), question) for key in pair)
    better, worse = (_spoken(record[key]) if whole else said(record[key], "assistant") for key in pair)
    if whole and any(answered[:1] and answered[0].role == "system" for answered in (better, worse)):
        system = ()
    asked = system if whole else (*system, *question)
    same = 0
    while whole and same < min(len(better), len(worse)) and better[same] == worse[same]:
        same += 1  # both hold the whole dialogue, the question with it
    shown = [message.to_json() for message in (*asked, *better[:same])]
    task = f"pair-{content_hash([shown, tools])[:12]}"
    found = []
    for rollout, (key, answered) in enumerate(zip(pair, (better, worse), strict=True)):
        found.append(
            Chat(
                messages=(*asked, *answered),
                key=["preference", shared, tools, record[key], rollout],
                prefix="pair",
                tools=read_tools(tools),
                task=task,
                outcomes={OFFICIAL: 1.0 - rollout},
                metadata=_beside(record, *pair, place),
            )
        )
    return tuple(found)


def _begins(messages: tuple[Message, ...], question: tuple[Message, ...]) -> bool:
    """Whether what should be an answer is the whole dialogue: the question, maybe behind a system prompt, begins it."""
    first = 1 if messages and messages[0].role == "system" and question[:1] != messages[:1] else 0
    return messages[first : first + len(question)] == question


def _spoken(value: JSON) -> tuple[Message, ...]:
    """A whole dialogue as text (`\\n\\nHuman: … \\n\\nAssistant: …`), or as messages."""
    if not isinstance(value, str) or "\n\nAssistant:" not in value:
        return said(value, "assistant")
    messages: list[JSON] = []
    for piece in value.split("\n\nHuman:"):
        human, *replies = piece.split("\n\nAssistant:")
        if human.strip():
            messages.append({"role": "user", "content": human.strip()})
        messages += [{"role": "assistant", "content": reply.strip()} for reply in replies]
    return any_messages(messages)


def _chat(
    record: Mapping[str, JSON],
    messages: tuple[Message, ...],
    prefix: str,
    *,
    settings: Mapping[str, JSON] | None = None,
    note: str | None = None,
) -> Chat:
    settings = record if settings is None else settings
    label = record.get("label")  # KTO's: whether the answer is wanted
    reward = number_of(label if isinstance(label, bool) else record.get("reward"), "reward")
    model = settings.get("model", record.get("model", mapping_of(record.get("response")).get("modelVersion")))
    identity = record.get("id", record.get("custom_id", record.get("key")))
    return Chat(
        messages=messages,
        key=[prefix, identity, record.get("task_id"), [message.to_json() for message in messages]],
        prefix=prefix,
        tools=read_tools(settings.get("tools", record.get("tools"))),
        model=model if isinstance(model, str) else None,
        sampling=sampling_of(settings),
        task=text_of(record.get("task_id")),
        outcomes={} if reward is None else {OFFICIAL: reward},
        metadata={
            **mapping_of(record.get("metadata")),
            **{key: record[key] for key in ("custom_id", "key") if isinstance(record.get(key), str)},
        },
        user=text_of(record.get("user_id")),
        tags=texts_of(record.get("tags")),
        note=note,
    )


__all__ = [
    "answer_of",
    "answers_of",
    "pair_of",
    "preference_of",
    "read_batch_output",
    "read_preferences",
    "read_prompt_completion",
    "read_stored_completion",
    "said",
]
