"""Whatever goes wrong at a judge, over real HTTP: it is retried, then NULL with its cause; nothing of it becomes a
number."""

from __future__ import annotations

import json
import time
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import JudgeRefused
from cm2_agent.rewards.judges.client import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from tests.chat_server import ChatServer, last_message
from tests.fuzzing import examples
from tests.judge_server import FREE, Fault, JudgeServer, answer, function_model, honest, reply
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import DATE, DATE_YES, GOOD, ONE, TWO, ask, judging

closed = shared.closed

FAULTS: dict[str, tuple[Fault, str]] = {
    "429": (Fault(status=429, headers={"Retry-After": "0"}), "infrastructure"),
    "500": (Fault(status=500), "infrastructure"),
    "502": (Fault(status=502, body="<html>bad gateway</html>"), "infrastructure"),
    "503": (Fault(status=503), "infrastructure"),
    "529": (Fault(status=529), "infrastructure"),
    "dropped": (Fault(drop=True), "infrastructure"),
    "time-out": (Fault(text=GOOD, delay=30), "infrastructure"),
    "not a completion": (Fault(body='{"hello": 1}'), "infrastructure"),
    "not JSON at all": (Fault(body="<html>"), "infrastructure"),
    "no choices": (
        Fault(body='{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[]}'),
        "infrastructure",
    ),
    "empty": (Fault(text=""), "infrastructure"),
    "prose": (Fault(text="All items are satisfied."), "infrastructure"),
    "half a reply": (Fault(text=GOOD[:-9]), "infrastructure"),
    "cut off": (Fault(text=GOOD, finish="length"), "infrastructure"),
    "no items": (Fault(text='{"items": []}'), "infrastructure"),
    "unknown verdict": (Fault(text=json.dumps(reply({**DATE_YES, "verdict": "maybe"}))), "infrastructure"),
    "unknown id": (Fault(text=json.dumps(reply(DATE_YES, answer("other", "no")))), "infrastructure"),
    "a key twice": (
        Fault(text=GOOD.replace('"verdict": "yes"', '"verdict": "no", "verdict": "yes"')),
        "infrastructure",
    ),
    "twice": (Fault(text=json.dumps(reply(DATE_YES, answer("date", "no")))), "infrastructure"),
    "two answers": (Fault(text=f"{GOOD} or rather {json.dumps(reply(answer('date', 'no')))}"), "infrastructure"),
    "a draft in thinking": (Fault(text=f"<think>{GOOD}</think>I would rather not say."), "infrastructure"),
    "a broken object around it": (Fault(text=f'{{"answer": {GOOD}, "and'), "infrastructure"),
    "refusal": (Fault(refusal="I cannot judge this."), "content"),
    "filtered": (Fault(text="", finish="content_filter"), "content"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "cause"), FAULTS.values(), ids=FAULTS.keys())
async def test_every_failure_is_retried_and_then_null_with_its_cause(fault: Fault, cause: str) -> None:
    with JudgeServer(faults=[fault] * 10) as server:
        judge = judging(server, timeout=1 if fault.delay else 300)
        got = await judge(ONE, 0, TWO)
        assert server.calls == 3
    assert [(verdict.value, verdict.step, verdict.cause) for verdict in got] == [(None, None, cause)] * 2
    assert all(verdict.explanation for verdict in got)
    assert judge.usage.calls == 3
    with JudgeServer(faults=[fault], answerer=lambda asked: reply(DATE_YES)) as server:
        (mended,) = await ask(server, timeout=5 if fault.delay else 300)
        assert server.calls == 2
    assert mended.value is True, "and a judge that comes back judges"


@pytest.mark.parametrize("status", [400, 422])
async def test_a_request_that_is_rejected_is_tried_without_its_schema_and_not_repeated(status: int) -> None:
    with JudgeServer(lambda asked: reply(DATE_YES)) as server:
        judge = judging(server)
        assert (await judge(ONE, 0, [DATE]))[0].value is True
        server.bodies.clear()
        server.faults.append(Fault(status=status))
        (got,) = await judge(ONE, 0, [DATE])
        assert [body["response_format"]["type"] for body in server.bodies] == ["json_schema"]
    assert (got.value, got.cause) == (None, "infrastructure")


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 410, 418, 421])
async def test_a_judge_that_would_refuse_any_request_is_no_verdict(status: int) -> None:
    with JudgeServer(faults=[Fault(status=status)] * 10) as server:
        judge = judging(server)
        with pytest.raises(JudgeRefused, match=rf"judge openai:stub is refused by its provider: .*{status}"):
            await ChecklistScorer(Checklist(DATE, name="c"), judge=judge)(ONE)
        assert server.calls == 1 + (status not in (401, 402, 404)), (
            "it may be of this request: something plain is tried"
        )
        assert judge.refused is not None


async def test_who_is_refused_is_not_shown_the_providers_own_words_in_which_the_key_may_be_echoed() -> None:
    key = "sk-proj-abcdEFGH1234abcdEFGH1234abcd"
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {key}", "code": "invalid_api_key"}})
    with JudgeServer(faults=[Fault(status=401, body=body)]) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub", key), price=FREE, retries=0)
        with pytest.raises(JudgeRefused, match="Incorrect API key provided") as caught:
            await judge(ONE, 0, [DATE])
    raised: BaseException | None = caught.value
    while raised is not None:
        assert key not in f"{raised!s}{raised!r}"
        raised = raised.__cause__ or raised.__context__
    assert key not in "".join(traceback.format_exception(caught.value))


async def test_a_later_403_is_the_traces_own_until_nothing_else_is_answered() -> None:
    """A firewall says 403 of what was shown; a key that was withdrawn, of everything."""
    with JudgeServer(lambda asked: reply(DATE_YES)) as server:
        judge = judging(server)
        assert (await judge(ONE, 0, [DATE]))[0].value is True
        server.faults.extend([Fault(status=403)] * 5)
        for _ in range(2):
            assert (await judge(ONE, 0, [DATE]))[0].cause == "infrastructure"
        with pytest.raises(JudgeRefused):
            await judge(ONE, 0, [DATE])


PLAIN = "Reply with the JSON object {}."


def rejecting(body: dict[str, Any], *, all_: bool, status: int = 400) -> Any:
    """A server that rejects what it is shown, the plainest request too where it rejects `all_`."""
    plain = last_message(body) == PLAIN
    return Fault(status=status) if all_ or not plain else "{}"


async def test_a_provider_that_rejects_all_that_it_is_asked_is_not_asked_on() -> None:
    """Whatever its reason: where it has never answered, it is shown something plain."""
    with ChatServer(lambda body: rejecting(body, all_=True)) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=2, backoff=0)
        with pytest.raises(JudgeRefused, match="400"):
            await judge(ONE, 0, [DATE])
        assert [last_message(body) == PLAIN for body in server.bodies] == [False] * 3 + [True] * 3
        await judge.aclose()


@pytest.mark.parametrize("status", [400, 403])
async def test_what_is_rejected_for_its_own_sake_is_a_failure_of_its_own(status: int) -> None:
    with ChatServer(lambda body: rejecting(body, all_=False, status=status)) as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=2, backoff=0)
        for _ in range(2 if status == 403 else 5):
            assert (await judge(ONE, 0, [DATE]))[0].cause == "infrastructure"
        assert [last_message(body) for body in server.bodies].count(PLAIN) == 1, "it is known to answer then"
        await judge.aclose()


@pytest.mark.parametrize(
    "message",
    [
        "stub is not a valid model ID",
        "The model `stub` does not exist or you do not have access to it.",
        "API key not valid. Please pass a valid API key.",
    ],
)
async def test_a_400_that_speaks_of_key_or_model_is_a_refusal(message: str) -> None:
    body = json.dumps({"error": {"message": message}})
    with (
        JudgeServer(faults=[Fault(status=400, body=body)] * 9) as server,
        pytest.raises(JudgeRefused, match=message[:20]),
    ):
        await ask(server)


TOO_LONG = (
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
    "the request exceeds the available context size. try increasing the context size",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
    "Input is too long for requested model: too many input tokens",
)


@pytest.mark.parametrize("message", TOO_LONG)
async def test_a_transcript_too_long_for_the_server_is_the_contents_doing(message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}})
    with JudgeServer(faults=[Fault(status=400, body=body)] * 5) as server:
        (got,) = await ask(server)
        assert server.calls == 1
    assert (got.value, got.cause) == (None, "content")


async def test_what_a_provider_flags_is_the_contents_doing() -> None:
    body = json.dumps({"error": {"message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}})
    with JudgeServer(faults=[Fault(status=403, body=body)] * 5) as server:
        (got,) = await ask(server)
        assert server.calls == 1
    assert (got.value, got.cause) == (None, "content")


async def test_a_server_that_is_not_there_gives_null() -> None:
    with JudgeServer() as server:
        judge = judging(server)
    (got,) = await judge(ONE, 0, [DATE])
    assert (got.value, got.cause) == (None, "infrastructure")


async def test_retry_after_is_waited_for_and_given_up_where_it_is_too_long() -> None:
    with JudgeServer(lambda asked: reply(DATE_YES), faults=[Fault(status=429, headers={"Retry-After": "1"})]) as server:
        before = time.monotonic()
        (got,) = await ask(server)
        assert time.monotonic() - before >= 0.99
        assert got.value is True
    with JudgeServer(faults=[Fault(status=429, headers={"Retry-After": "3600"})]) as server:
        (got,) = await ask(server)
        assert server.calls == 1
        assert (got.value, got.cause) == (None, "infrastructure")


async def test_what_a_reply_leaves_out_is_asked_again_alone() -> None:
    with JudgeServer(lambda asked: reply(*honest(asked)["items"][:1])) as server:
        judge = judging(server)
        got = await judge(ONE, 0, TWO)
        assert [[item["id"] for item in asked.items] for asked in server.asked] == [["date", "looked"], ["looked"]]
    assert [verdict.value for verdict in got] == [True, True]
    assert (judge.usage.calls, judge.usage.re_asks) == (2, 1)


QUOTE = DATE_YES["evidence"]
READ: dict[str, str] = {
    "a fence": f"```json\n{GOOD}\n```",
    "words around a fence": f"Here is my verdict:\n```json\n{GOOD}\n```\nLet me know.",
    "another fence": f"~~~\n{GOOD}\n~~~",
    "words around": f"Sure! {GOOD}\n\nHope {'{this}'} helps [1].",
    "thinking": f"<think>Perhaps {GOOD.replace('yes', 'no')}</think>\n{GOOD}",
    "the end of thinking alone": f"Perhaps {GOOD.replace('yes', 'no')}\n</think>\n\n{GOOD}",
    "a tag in the analysis": json.dumps(reply({**DATE_YES, "analysis": "it wrote </think> and <think>"})),
    "a byte-order mark": f"\ufeff{GOOD}",
    "a string of JSON": json.dumps(GOOD),
    "a line break in a string": GOOD.replace("As the test", "As\nthe test"),
    "the same twice": f"{GOOD}\n{GOOD}",
    "Yes": json.dumps(reply({**DATE_YES, "verdict": " Yes. "})),
    "true": json.dumps(reply({**DATE_YES, "verdict": True})),
    "more keys": json.dumps({**reply({**DATE_YES, "score": 1}), "summary": "good"}),
    "no analysis": json.dumps(reply({name: value for name, value in DATE_YES.items() if name != "analysis"})),
    "a step as text": json.dumps(reply({**DATE_YES, "evidence": {**QUOTE, "step": "2"}})),
    "a step with a point": json.dumps(reply({**DATE_YES, "evidence": {**QUOTE, "step": 2.0}})),
    "a list of evidence": json.dumps(reply({**DATE_YES, "evidence": [QUOTE]})),
    "a part by its last name": json.dumps(
        reply({**DATE_YES, "evidence": {**QUOTE, "part": QUOTE["part"].partition(".")[2]}})
    ),
    "capitals in the id": json.dumps(reply({**DATE_YES, "id": "Date"})),
    "a list": json.dumps([DATE_YES]),
    "one answer": json.dumps(DATE_YES),
    "by id": json.dumps({"date": {name: value for name, value in DATE_YES.items() if name != "id"}}),
}


@pytest.mark.parametrize("kind", READ)
async def test_what_leaves_no_doubt_is_read(kind: str) -> None:
    got = await LLMJudge(function_model(lambda asked: READ[kind]), backoff=0, retries=0)(ONE, 0, [DATE])
    assert [verdict.value for verdict in got] == [True], got[0].explanation


async def test_a_no_needs_no_evidence_and_no_analysis() -> None:
    text = json.dumps({"items": [{"id": "date", "verdict": "NO"}]})
    (got,) = await LLMJudge(function_model(lambda asked: text), backoff=0, retries=0)(ONE, 0, [DATE])
    assert got.value is False


@settings(max_examples=examples(200))
@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["items", "id", "analysis", "evidence", "answer", "step"]), inner)
        ),
    ).map(json.dumps)
)
async def test_no_garbage_becomes_a_number(text: str) -> None:
    (got,) = await LLMJudge(function_model(lambda asked: text), backoff=0, retries=0)(ONE, 0, [DATE])
    assert got.value is None


async def test_a_faulty_judge_leaves_the_rollout_unscored_never_at_zero() -> None:
    with JudgeServer(faults=[Fault(status=500)] * 10) as server:
        strict = Checklist(Item("date", "Is the date told?", turn=0, required_for_next_turn=True))
        scorer = ChecklistScorer(strict, judge=judging(server, retries=0))
        score = await scorer(ONE)
        assert await scorer.gate(ONE, 0) is None
    assert (score.reward, score.null_reason) == (None, "verdicts")
