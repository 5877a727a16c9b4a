"""Ids that are personal data: never stored as they are, and still what joins and erases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from typer.testing import CliRunner

from cm2_agent import Redactor, watch
from cm2_agent.cli.app import app
from cm2_agent.online.watch import flush
from cm2_agent.redaction.redacted_run import redacted_run
from cm2_agent.store import SQLStore
from cm2_agent.types.run import Branch, Run
from tests.tracing.apps import ScriptedModel, agent, calls

MAIL = "ada.lovelace@example.org"
KEY = b"a secret of the tests"


@pytest.mark.parametrize("key", [None, KEY])
def test_an_address_as_an_id_is_stored_nowhere_joins_later_runs_and_is_erased_by(
    key: bytes | None, tmp_path: Path
) -> None:
    url, saver = f"sqlite:///{tmp_path / 'cm2.db'}", InMemorySaver()
    config: Any = {"configurable": {"thread_id": MAIL}, "metadata": {"user_id": MAIL, "session_id": f"of {MAIL}"}}
    for _ in range(2):  # a redactor each, as two processes have
        model = ScriptedModel(script=[calls(1), AIMessage(content="it is value 1")], per_turn=True)
        graph = watch(agent(model, checkpointer=saver), store=url, redact=Redactor(key=key))
        graph.invoke({"messages": [("user", "what is 1?")]}, config)
        assert flush(300)
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"lovelace" not in files
    with SQLStore(url) as store:
        (trace,) = store.traces()
    assert len(trace.turns) == 2, "the second run joins the first"
    assert trace.runs[0].user == trace.runs[1].user == trace.id == Redactor(key=key).redact_id(MAIL)
    secret = {} if key is None else {"CM2_REDACTION_KEY": key.decode()}
    for wrong in ({"CM2_REDACTION_KEY": "another"}, *([] if key is None else [{}])):
        command = ["traces", "erase", "--user", MAIL, "--store", url, "--yes", "--json"]
        missed = CliRunner().invoke(app, command, env=wrong)
        (note,) = json.loads(missed.stdout)["notes"]
        assert note in missed.stderr
        assert ("with the key in" if wrong else "is not set") in note
    found = CliRunner().invoke(app, ["traces", "erase", "--user", MAIL, "--store", url, "--yes"], env=secret)
    assert found.exit_code == 0, found.stderr
    assert "what a redactor makes of it" in found.stderr
    with SQLStore(url) as store:
        assert list(store.traces()) == []


@given(st.sampled_from(["thread-7", "user_42", "6f1c9a52-5b1e-4c7f-9d1b-0a1b2c3d4e5f", "T", "mia_li_3668"]))
def test_an_id_that_is_nobodys_stays(name: str) -> None:
    run = Run(id="r", thread=name, user=name, session=name, trace=f"{name}~1", branch=Branch(parent=name, messages=1))
    assert redacted_run(run, Redactor()) == run


@given(st.emails(), st.sampled_from(["{}", "user:{}", "{}-2026", "chat/{}/7"]))
def test_the_same_id_is_the_same_in_every_process_and_twice_is_once(mail: str, frame: str) -> None:
    name = frame.format(mail)
    one, other = Redactor().redact_id(name), Redactor().redact_id(name)
    assert one == other == Redactor().redact_id(one)
    assert Redactor(key=KEY).redact_id(name) == Redactor(key=KEY).redact(name)
