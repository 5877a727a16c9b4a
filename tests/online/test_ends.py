"""Whatever ends a process: what it has answered is stored, by then or at the next start, and nothing twice."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from cm2_agent.online.live import Live
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.store_paths import open_store, paths_to
from cm2_agent.store import SQLStore
from tests.online.ends import ENDS, run_to_its_end
from tests.online.stores import Length

WORK = """
from cm2_agent.online.live import Live
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.store_paths import open_store, paths_to
from tests.online.stores import Length, run

paths = paths_to(os.environ["STORE"], project=None, spool=os.environ.get("SPOOL"))
live = Live(paths.saver, paths.scoring, Middleware(None, Length(), (), paths.saver.incidents), key="length")
open_store(live, strict=False)

def work(k):
    for number in range(5):
        name = f"{os.getpid()}-{k}-{number}"
        live.submit(run(name))
        answered(name)
"""


def start_again(url: str, spool: str | None = None) -> Live:
    """The application's next start, in this process."""
    paths = paths_to(url, project=None, spool=spool)
    live = Live(paths.saver, paths.scoring, Middleware(None, Length(), (), paths.saver.incidents), key="length")
    open_store(live, strict=False)
    return live


def stored(url: str) -> dict[str, bool]:
    """The stored traces, and whether each has a score."""
    with SQLStore(url) as store:
        return {trace.id: store.score(trace.id) is not None for trace in store.traces()}


@pytest.mark.parametrize("end", ENDS)
def test_what_was_answered_is_stored_and_scored(end: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    answered, _ = run_to_its_end(WORK + ENDS[end], STORE=url)
    assert len(answered) >= 5
    assert start_again(url).flush(300)
    assert stored(url) == dict.fromkeys(answered, True)


def test_a_store_that_is_locked_at_the_end_gets_its_runs_at_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    SQLStore(url).close()
    lock = sqlite3.connect(tmp_path / "cm2.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    answered, said = run_to_its_end(WORK + "work(0)", STORE=url, CM2_EXIT_SECONDS="0.1")
    assert f"5 runs are not saved and wait in {tmp_path}/cm2.db.spool for the next start" in said
    lock.execute("ROLLBACK")
    lock.close()
    assert start_again(url).flush(300)
    assert stored(url) == dict.fromkeys(answered, True)


def test_what_was_stored_and_not_scored_is_scored_at_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    code = """
async def never(trace, task=None):
    await asyncio.sleep(3600)
live.middleware.scorer = never
work(0)
"""
    answered, said = run_to_its_end(WORK + code, STORE=url, CM2_EXIT_SECONDS="0.2")
    assert "5 traces are stored without a score; the next start scores them" in said
    assert stored(url) == dict.fromkeys(answered, False)
    assert start_again(url).flush(300)
    assert stored(url) == dict.fromkeys(answered, True)


def test_what_a_killed_process_had_stored_and_not_scored_is_scored_at_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    code = """
async def never(trace, task=None):
    await asyncio.sleep(3600)
live.middleware.scorer = never
work(0)
live.saver.flush(None, 300)
os.kill(os.getpid(), signal.SIGKILL)
"""
    answered, _ = run_to_its_end(WORK + code, STORE=url)
    assert stored(url) == dict.fromkeys(answered, False)
    assert start_again(url).flush(300)
    assert stored(url) == dict.fromkeys(answered, True)


def test_runs_that_find_no_room_anywhere_are_not_lost_without_a_word(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    code = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
work(0)
"""
    answered, said = run_to_its_end(WORK + code, STORE=url, CM2_EXIT_SECONDS="0.2")
    waiting = int(
        re.findall(r"cm2_agent: (\d) runs are not saved and wait in .*/cm2.db.spool for the next start", said)[0]
    )
    lost = int(re.findall(r"cm2_agent: (\d) runs are not saved and lost: .* could not be written to", said)[0])
    assert waiting + lost == len(answered) == 5
    assert start_again(url).flush(300)
    assert len(stored(url).keys() & answered) == waiting


@pytest.mark.parametrize("removed", ["cm2.db.spool", "."])
def test_a_spool_that_was_removed_is_no_place_where_runs_wait(removed: str, tmp_path: Path) -> None:
    """Without the folder of the store too, the end of the process waits for nothing."""
    (tmp_path / "data").mkdir()
    url = f"sqlite:///{tmp_path}/data/cm2.db"
    SQLStore(url).close()
    lock = sqlite3.connect(tmp_path / "data" / "cm2.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    code = f"import shutil; work(0); shutil.rmtree({str(tmp_path / 'data' / removed)!r})"
    answered, said = run_to_its_end(WORK + code, STORE=url, CM2_EXIT_SECONDS="3600" if removed == "." else "0.1")
    lock.close()
    assert len(answered) == 5
    assert f"5 runs are not saved and lost: {tmp_path}/data/cm2.db.spool was removed" in said


def test_a_folder_that_cannot_be_made_is_said_and_the_runs_wait_in_memory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    answered, said = run_to_its_end(WORK + "work(0)", STORE=url, SPOOL=str(tmp_path / "file"))
    assert "there is no spool: its folder cannot be made" in said
    assert set(stored(url)) == answered


def test_a_store_whose_disk_is_full_gets_its_runs_when_there_is_room(tmp_path: Path) -> None:
    """The limit of a file's size stands for the end of the store's disk; the spool's files are smaller."""
    url = f"sqlite:///{tmp_path}/cm2.db"
    code = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
work(0)
"""
    answered, said = run_to_its_end(WORK + code, STORE=url, CM2_EXIT_SECONDS="0.2")
    assert "the store is away, and runs wait for it" in said
    assert "5 runs are not saved" in said
    assert stored(url) == {}
    assert start_again(url).flush(300)
    assert stored(url) == dict.fromkeys(answered, True)


def test_a_stream_that_nobody_closes_is_stored_as_cancelled(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    code = """
from langgraph.checkpoint.memory import InMemorySaver
from cm2_agent import flush, watch
from tests.tracing.apps import agent, says

graph = watch(agent(says("Hello."), checkpointer=InMemorySaver()), store=os.environ["STORE"])
stream = graph.stream({"messages": [("user", "hi")]}, {"configurable": {"thread_id": "open"}}, stream_mode="updates")
next(stream)
assert flush(60)
child = os.fork()  # inside the run, which is the parent's
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
ended = graph.stream({"messages": [("user", "hi")]}, {"configurable": {"thread_id": "ended"}}, stream_mode="updates")
list(ended)
answered("open")
"""
    _, errors = run_to_its_end(code, STORE=url)
    assert errors == ""
    with SQLStore(url) as store:
        found = {
            trace.id: (trace.runs[0].status, [message.text for message in trace.messages]) for trace in store.traces()
        }
    assert {name: status for name, (status, _) in found.items()} == {"open": "cancelled", "ended": "ok"}
    assert found["open"][1] == found["ended"][1]
