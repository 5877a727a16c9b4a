"""Sinks: webhooks against a real server on loopback, thresholds, and the off switch of `watch`."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import Trace, watch
from cm2_agent.online.sinks import Alert, Threshold, Webhook
from cm2_agent.online.watch import flush
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from tests.online.test_watch import LOOKS, QUESTION, app

SECRET = "a secret of the user"


class Server:
    """Answers each POST with the next of `answers` (a status, and a location), the last one again; keeps what came."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str | None]] = [(204, None)]
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.gate.wait()
                status, location = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                outer.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(status)
                if location is not None:
                    self.send_header("location", location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def trace(id: str = "t") -> Trace:
    return Trace(
        id=id, runs=(Run(id=id, messages=(Message.of("user", "my card is 4111"),), attributes={TASK_ID: "t1"}),)
    )


def score(reward: float | None = 1.0, *, id: str = "t", version: str = "v", satisfied: bool | None = True) -> Score:
    verdict = Verdict(item="answered", value=satisfied, weight=1.0, explanation="the user said 4111")
    turn = TurnScore(turn=0, reached=True, steps=1, reward=reward, verdicts=(verdict,))
    return Score(trace_id=id, reward_version=version, reward=reward, turns=(turn,))


def test_a_webhook_sends_a_score_and_signs_it(server: Server) -> None:
    hook = Webhook(f"{server.url}/hook?token=t0ken", SECRET)
    hook(trace(), score(0.5))
    hook(trace(), None)
    assert hook.flush(300)
    ((path, headers, body),) = server.seen
    assert path == "/hook?token=t0ken"
    sent = json.loads(body)
    assert sent == {
        "type": "cm2.trace.scored",
        "trace": "t",
        "task": "t1",
        "reward": 0.5,
        "lower": None,
        "upper": None,
        "reward_version": "v",
        "null_reason": None,
        "runs": 1,
        "verdicts": [{"turn": 0, "item": "answered", "value": True, "reason": None, "cause": None}],
    }
    assert b"4111" not in body
    seconds, mark = (part.split("=")[1] for part in headers["x-cm2-signature"].split(","))
    assert mark == hmac.new(SECRET.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    Webhook(server.url)(trace(), score())
    assert hook.incidents.counts == {}


def test_a_delivery_is_tried_again_and_then_given_up(server: Server) -> None:
    hook = Webhook(server.url, pauses=(0, 0))
    server.answers = [(503, None), (429, None), (200, None)]
    hook(trace(), score())
    assert hook.flush(300)
    assert [len(server.seen), hook.incidents.counts] == [3, {}]
    assert len({headers["x-cm2-delivery"] for _, headers, _ in server.seen}) == 1
    server.answers = [(503, None)]
    hook(trace(), score())
    assert hook.flush(300)
    assert len(server.seen) == 6
    assert hook.incidents.counts == {"a webhook was not delivered to 127.0.0.1 in 3 tries: status 503": 1}


def test_what_asking_again_cannot_mend_is_not_asked_again(server: Server) -> None:
    other = Server()
    hook = Webhook(server.url, SECRET, pauses=(0, 0))
    server.answers = [(400, None), (307, f"{other.url}/elsewhere"), (302, f"{other.url}/elsewhere")]
    for _ in range(3):
        hook(trace(), score())
    assert hook.flush(300)
    other.close()
    assert (len(server.seen), other.seen) == (3, [])
    hint = "; redirects are not followed: give the final URL"
    failures = sorted(kind.split(": ", 1)[1] for kind in hook.incidents.counts)
    assert failures == [f"status 302{hint}", f"status 307{hint}", "status 400"]


def test_what_finds_the_queue_full_is_dropped_and_counted(server: Server) -> None:
    server.gate.clear()
    hook = Webhook(server.url, size=3)
    for number in range(20):
        hook(trace(), score(id=str(number)))
    server.gate.set()
    assert hook.flush(300)
    (dropped,) = hook.incidents.counts.values()
    assert dropped + len(server.seen) == 20
    assert dropped >= 16


def test_a_dead_host_harms_nobody_and_no_secret_is_logged_or_shown(caplog: pytest.LogCaptureFixture) -> None:
    gone = Server()
    gone.close()
    hook = Webhook(f"{gone.url.replace('//', '//user:passw0rd@')}/t0ken", SECRET, pauses=(0,), timeout=5)
    with caplog.at_level(logging.DEBUG):
        hook(trace(), score())
        assert hook.flush(300)
    assert hook.incidents.counts == {"a webhook was not delivered to 127.0.0.1 in 2 tries: ConnectError": 1}
    logged = caplog.text + repr(hook) + repr(hook.incidents.drain())
    assert "webhook" in logged
    for secret in ("t0ken", "passw0rd", SECRET):
        assert secret not in logged


def test_no_secret_is_logged_when_all_goes_well(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    hook = Webhook(f"{server.url}/t0ken", SECRET)
    with caplog.at_level(logging.DEBUG):
        hook(trace(), score())
        assert hook.flush(300)
    assert len(server.seen) == 1
    assert "t0ken" not in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "https://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        Webhook(url)


def test_a_threshold_alerts_when_the_mean_falls_and_not_again_until_it_rose() -> None:
    alerts: list[Alert] = []
    alarm = Threshold(alerts.append, below=0.5, window=2)
    for number, reward in enumerate([0.0, 1.0, None, 0.0, 0.9, 0.0, 0.2, 1.0, 0.0, 0.0]):
        alarm(trace(str(number)), score(reward, id=str(number)))
    assert [(alert.trace_id, alert.value, alert.n) for alert in alerts] == [("4", 0.45, 2), ("9", 0.0, 2)]


def test_a_threshold_on_an_item_and_on_one_trace() -> None:
    alerts: list[Alert] = []
    alarm = Threshold(alerts.append, item="answered")
    for value in (None, True, False, False, True, False):
        alarm(trace(), score(1.0, satisfied=value))
    assert [(alert.item, alert.value, alert.below) for alert in alerts] == [("answered", 0.0, 0.5)] * 2
    Threshold(alerts.append, item="other")(trace(), score(0.0))
    assert len(alerts) == 2


def test_scores_of_two_versions_are_never_averaged() -> None:
    alerts: list[Alert] = []
    alarm = Threshold(alerts.append, window=2)
    for number, version in enumerate(["v1", "v2", "v1", "v2", "v2"]):
        alarm(trace(str(number)), score(0.0, id=str(number), version=version))
    assert [(alert.trace_id, alert.reward_version) for alert in alerts] == [("4", "v2")]


@pytest.mark.parametrize("options", [{"below": 1.5}, {"window": 0}])
def test_thresholds_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        Threshold(print, **options)


def test_sinks_of_a_watched_graph(server: Server, tmp_path: Path) -> None:
    alerts: list[Alert] = []

    async def alert(one: Alert) -> None:
        alerts.append(one)

    server.answers = [(200, None), (400, None)]
    hook = Webhook(server.url, SECRET)
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    graph = watch(app(), LOOKS, store=url, sinks=[hook, Threshold(alert, below=1.0, item="looks")])
    graph.invoke(QUESTION)
    graph.invoke(QUESTION)
    assert flush(300)
    assert len(server.seen) == 2
    assert alerts == []
    assert hook.incidents.counts == {"a webhook was not delivered to 127.0.0.1: status 400": 1}


def test_a_graph_that_is_switched_off_is_given_back_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    plain = app()
    assert watch(plain, LOOKS, store=url, enabled=False) is plain
    monkeypatch.setenv("CM2_DISABLED", "1")
    assert watch(plain, LOOKS, store=url) is plain
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="sample"):
        watch(plain, LOOKS, store=url, sample=2.0)
    assert watch(plain, LOOKS, store=url, enabled=True) is not plain
    monkeypatch.setenv("CM2_DISABLED", "0")
    assert watch(plain, LOOKS, store=url) is not plain
