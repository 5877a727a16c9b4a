"""Many writers at once, and writers that die: threads, processes, and a kill in the middle of a transaction."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score

WRITER = """
import sys
from cm2_agent.types.messages import Message
from cm2_agent.types.score import Score
from cm2_agent.store import SQLStore
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID; from cm2_agent.types.trace import ModelCall, Run

url, name, count, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shared = Message.of("system", "You are the order desk.")
store = SQLStore(url)
for start in range(0, count, batch):
    runs = []
    for number in range(start, start + batch):
        said = (shared, Message.of("user", f"question {number % 7}"))
        ids = {"prompt_ids": tuple(range(200)), "completion_ids": (1,), "logprobs": (-1.0,)}
        call = ModelCall(span_id="s", input=said, message=0, **ids)
        thread = f"thread-{number % 5}" if name.startswith("joint") else None
        facts = {TASK_ID: f"t{number % 3}", ROLLOUT: number}
        run = Run(id=f"{name}-{number}", thread=thread, messages=said, calls=(call,), attributes=facts, started=number)
        runs.append(run)
    if batch == 1:
        score = Score(trace_id=runs[0].trace_id, reward_version=f"v{start % 2}", reward=0.5)
        store.save_dialogue(runs, score)
    else:
        store.save_runs(runs)
    print(start + batch, flush=True)
"""


def writer(url: str, name: str, count: int, batch: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, name, str(count), str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error


def test_processes_create_and_fill_one_store_together(store_url: str) -> None:
    """All of them find an empty database, write the same contents, group keys and reward versions, and half of them the
    same threads."""
    for process in [writer(store_url, name, 40) for name in ("alone1", "alone2", "joint1", "joint2")]:
        ended(process)
    with SQLStore(store_url) as store:
        health = store.health()
        assert health["runs"] == 160
        assert health["traces"] == 2 * 40 + 5
        assert health["contents"] == 1 + 7
        traces = {trace.id: trace for trace in store.traces()}
        for number in range(5):
            trace = traces[f"thread-{number}"]
            assert [run.started for run in trace.runs] == sorted(2 * list(range(number, 40, 5)))
            assert all(call.prompt_ids == tuple(range(200)) and len(call.input) == 2 for call in trace.calls)
        assert sorted(store.reward_versions()) == ["v0", "v1"]
        assert len(list(store.scores("v0"))) + len(list(store.scores("v1"))) == 80 + 2 * 5


def test_threads_share_a_store(store_url: str) -> None:
    shared = Message.of("system", "You are the order desk.")

    def save(number: int) -> int:
        run = Run(
            id=f"r{number}",
            thread=f"t{number % 4}",
            messages=(shared, Message.of("user", str(number % 9))),
            started=number,
        )
        new = store.save_runs([run])
        store.save_score(Score(trace_id=run.trace_id, reward_version="v", reward=None))
        store.count_incident("dropped", str(number))
        assert store.trace(run.trace_id) is not None
        return new

    with SQLStore(store_url) as store, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(save, [*range(80), *range(80)])) == 80
        assert [len(trace.runs) for trace in store.traces()] == [20] * 4
        assert store.incidents()["dropped"]["count"] == 160
        assert len(list(store.scores())) == 4


def test_threads_that_save_the_same_run_store_it_once(store_url: str) -> None:
    runs = [Run(id="r", thread="t", messages=(Message.of("user", "x"),))] * 16
    with SQLStore(store_url) as store, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda run: store.save_runs([run]), runs)) == 1


def test_stores_open_at_once_on_an_empty_database(store_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: SQLStore(store_url), range(8)))
    for number, store in enumerate(stores):
        store.save_run(Run(id=str(number)))
    assert len(list(stores[0].traces())) == 8
    for store in stores:
        store.close()


def test_batches_in_opposite_order_do_not_lock_each_other_out(store_url: str) -> None:
    said = [Message.of("user", str(number)) for number in range(30)]

    def save(worker: int) -> int:
        order = said if worker % 2 else said[::-1]
        runs = [
            Run(id=f"{worker}-{i}", thread=f"t{message.text}", messages=(message,), attributes={TASK_ID: message.text})
            for i, message in enumerate(order)
        ]
        with SQLStore(store_url) as mine:
            return mine.save_runs(runs)

    SQLStore(store_url).close()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(save, range(6))) == [30] * 6


def test_a_killed_writer_leaves_no_half(store_url: str, tmp_path: Path) -> None:
    """Batches of 50 runs a transaction: whenever the writer dies, whole batches are there, and every trace can be
    read."""
    told = 0
    for round_ in range(4):
        process = writer(store_url, f"w{round_}", 5000, batch=50)
        assert process.stdout is not None
        for _ in range(round_ + 1):
            told += int(process.stdout.readline()) > 0
        process.kill()
        rest, _ = process.communicate()
        told += len(rest.splitlines())
    with SQLStore(store_url) as store:
        health = store.health()
        assert health["runs"] == health["traces"]
        assert isinstance(health["runs"], int)
        assert health["runs"] % 50 == 0
        assert health["runs"] // 50 >= told  # what was told as stored is stored
        assert told >= 10
        for trace in store.traces():
            assert len(trace.runs) == len(trace.calls) == 1
            assert trace.attributes[ROLLOUT] == trace.runs[0].started
            assert trace.task_id == f"t{trace.runs[0].started % 3}"


def test_a_store_goes_through_a_fork(store_url: str) -> None:
    code = (
        "import os, sys\nfrom cm2_agent.store import SQLStore\nfrom cm2_agent.types.trace import Run\n"
        "store = SQLStore(sys.argv[1])\nstore.save_run(Run(id='parent'))\nchild = os.fork()\n"
        "store.save_run(Run(id='child' if child == 0 else 'after'))\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
        "assert {'parent', 'child'} <= {trace.id for trace in store.traces()}\n"
    )
    subprocess.run([sys.executable, "-c", code, store_url], check=True, timeout=600)
    with SQLStore(store_url) as store:
        assert {trace.id for trace in store.traces()} == {"parent", "child", "after"}


def test_a_prefix_of_another_writers_call_is_found(store_url: str) -> None:
    """Two stores write one thread in turns: neither remembers what the other wrote, and both restore it."""
    ids: tuple[int, ...] = tuple(range(100))
    with SQLStore(store_url) as one, SQLStore(store_url) as other:
        for turn in range(6):
            call = ModelCall(span_id=str(turn), prompt_ids=ids, completion_ids=(turn,), logprobs=(-1.0,))
            (one, other)[turn % 2].save_run(Run(id=f"r{turn}", thread="t", calls=(call,), started=turn))
            ids = (*ids, turn, 7, 7)
        trace = one.trace("t")
        assert trace is not None
        assert [len(call.prompt_ids or ()) for call in trace.calls] == [100, 103, 106, 109, 112, 115]
        assert trace.calls[-1].prompt_ids == ids[:115]
        with one._db.reading() as connection:
            stored = connection.exec_driver_sql("SELECT sum(length(prompt_ids)) FROM model_calls").scalar_one()
    # of each prompt the two tokens that follow the completion before it, two bytes each, and one that says so
    assert stored == 2 * (100 + 5 * 2) + 6
