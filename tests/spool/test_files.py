"""The spool's files: what is read again, what is counted, and whose they are."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cm2_agent.spool.files import ABOUT as FROM
from cm2_agent.spool.files import RUN, SUFFIX, UNSCORED, Spool, SpoolFull, pack_record
from cm2_agent.spool.record import encode_run
from cm2_agent.spool.replay import UNREADABLE, Replayed, join_key, replay
from cm2_agent.types.run import Run
from tests.online.stores import run

ABOUT = {"store": "s", "project": "default"}


def spool_in(folder: Path, limit: int = 1 << 30) -> Spool:
    spool = Spool(folder, lambda: ABOUT, limit=limit)
    spool.prepare()
    return spool


def spooled(name: str, key: str | None = "k") -> bytes:
    return join_key(key, encode_run(run(name)))


def replayed(folder: Path, about: dict[str, str] = ABOUT) -> tuple[list[str], Replayed]:
    found: list[str] = []

    def save(runs: Sequence[tuple[str | None, Run]]) -> None:
        found.extend(f"{key}:{one.id}" for key, one in runs)

    return found, replay(str(folder), about, save)


def leave(spool: Spool) -> None:
    """What the end of a process does: its locks are gone, its files are not."""
    spool.leave()


def test_what_a_dead_process_left_is_read_once_and_removed(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "spool")
    for number in range(1, 6):
        spool.append(number, spooled(f"r{number}"))
    spool.settle(2)
    leave(spool)
    assert replayed(tmp_path / "spool")[0] == ["k:r3", "k:r4", "k:r5"]
    assert replayed(tmp_path / "spool")[0] == []
    assert os.listdir(tmp_path / "spool") == []


def test_a_stored_dialogue_does_not_lie_in_the_spool_any_longer(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    (file,) = tmp_path.iterdir()
    assert b"hello" in file.read_bytes()
    spool.settle(1)
    assert b"hello" not in file.read_bytes()
    spool.append(2, spooled("b"))
    leave(spool)
    names, found = replayed(tmp_path)
    assert (names, found.missing) == (["k:b"], 0)


def test_a_living_process_keeps_its_files(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.spool.test_files import spool_in, spooled
spool = spool_in(Path({str(tmp_path)!r}))
spool.append(1, spooled("theirs"))
print("ready", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
        assert replayed(tmp_path)[0] == []
        child.kill()
        child.wait()
        assert replayed(tmp_path)[0] == ["k:theirs"]


def test_own_files_are_never_opened_again_which_would_give_up_their_lock(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("mine"))
    assert replayed(tmp_path)[0] == []
    code = f"""
from pathlib import Path
from tests.spool.test_files import replayed
print(replayed(Path({str(tmp_path)!r}))[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    spool.settle(1)
    spool.close()
    assert not tmp_path.exists()


def test_a_folder_by_another_name_holds_the_same_own_files(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "spool")
    spool.append(1, spooled("mine"))
    (tmp_path / "other").symlink_to(tmp_path / "spool")
    assert replayed(tmp_path / "other")[0] == []
    other = spool_in(tmp_path / "other")
    other.append(1, spooled("too"))
    assert replayed(tmp_path / "spool")[0] == []
    assert len(list((tmp_path / "spool").iterdir())) == 2


def test_the_last_note_of_traces_without_a_score_holds(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    spool.append(2, spooled("b"))
    spool.settle(1, b'[["k", "a"], [null, "z"]]')
    spool.settle(1, b'[["k", "z"]]')
    leave(spool)
    names, found = replayed(tmp_path)
    assert (names, found.unscored) == (["k:b"], [("k", "z")])
    for notes, left in (([b'[["k", "a"]]'], [("k", "a")]), ([b'[["k", "a"]]', b""], [])):
        spool.append(1, spooled("a"))
        for note in notes:
            spool.settle(1, note)
        leave(spool)
        assert replayed(tmp_path)[1].unscored == left
    spool.append(1, spooled("a"))
    spool.settle(1, b'[["k", "a"]]')
    spool.close()  # a note keeps no file: an end in order has scored them, or appends what it has not
    assert not tmp_path.exists()


def test_a_file_that_somebody_removed_is_followed_by_another(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "spool")
    spool.append(1, spooled("a"))
    shutil.rmtree(tmp_path / "spool")
    spool.append(2, spooled("b"))
    spool.look()
    spool.append(3, spooled("c"))
    assert spool.removed == {1, 2}
    assert b"hello" in spool.read(spool.append(4, spooled("d")))
    spool.settle(1)
    assert spool.removed == {2}
    leave(spool)
    assert replayed(tmp_path / "spool")[0] == ["k:c", "k:d"]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "2-00-000001.spool")  # to read it would wait for ever
    (tmp_path / "3-00-000001.spool").symlink_to("/dev/zero")
    (tmp_path / "4-00-000001.spool").mkdir()
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    leave(spool)
    assert replayed(tmp_path)[0] == ["k:a"]
    assert len(list(tmp_path.iterdir())) == 3


def test_where_files_cannot_be_locked_runs_are_stored_without_a_spool(tmp_path: Path) -> None:
    """As on Windows, whose Python has none of these."""
    code = f"""
import os, sys
sys.modules["fcntl"] = None
for name in ("register_at_fork", "fork", "geteuid", "pread", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
    delattr(os, name)
from cm2_agent import SQLStore, flush, watch
from tests.online.test_watch import LOOKS, QUESTION, app
url = {f"sqlite:///{tmp_path}/cm2.db"!r}
watch(app(), LOOKS, store=url, spool={str(tmp_path / "spool")!r}).invoke(QUESTION)
assert flush(300)
(trace,) = SQLStore(url).traces()
print(SQLStore(url).score(trace.id).reward)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"
    assert "this system cannot lock files" in done.stderr
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_torn_end_costs_its_own_record_and_is_counted(tmp_path: Path, cut: int) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    spool.append(2, spooled("b"))
    leave(spool)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    names, found = replayed(tmp_path)
    assert (names, found.torn, found.runs) == (["k:a"], 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == [file.name + UNREADABLE]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    leave(spool)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    assert replayed(tmp_path)[1].torn == 1


def test_a_damaged_record_in_the_middle_costs_itself_alone(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    for number, name in enumerate("abc", 1):
        spool.append(number, spooled(name))
    leave(spool)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) - len(spooled("c")) - 40] ^= 4
    file.write_bytes(data)
    names, found = replayed(tmp_path)
    assert (names, found.unreadable, found.torn, found.missing) == (["k:a", "k:c"], 1, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == [file.name + UNREADABLE]


def test_numbers_without_a_record_are_counted(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    spool.settle(1)
    spool.append(4, spooled("d"))
    leave(spool)
    names, found = replayed(tmp_path)
    assert (names, found.missing) == (["k:d"], 2)


def test_a_record_of_another_version_is_not_thrown_away(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, join_key("k", b"Mnot a run"))
    spool.append(2, spooled("b"))
    leave(spool)
    names, found = replayed(tmp_path)
    assert (names, found.unreadable) == (["k:b"], 1)
    assert [path.name.endswith(UNREADABLE) for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("about", [b"", b"\xff", b"[]", b"{}", b'{"store": "s", "project": 3}', b"[" * 100_000])
def test_a_file_that_says_not_whose_it_is_stays_and_stops_nothing(tmp_path: Path, about: bytes) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    leave(spool)
    other = tmp_path / f"0-0-000001{SUFFIX}"
    other.write_bytes(pack_record(FROM, 0, about) + pack_record(RUN, 1, spooled("b")))
    assert replayed(tmp_path)[0] == ["k:a"]
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


@pytest.mark.parametrize("traces", [b"", b"{}", b"3", b'[["k"]]', b'[["k", 3], [3, "t"]]', b"[" * 100_000])
def test_traces_to_score_that_cannot_be_read_stop_nothing(tmp_path: Path, traces: bytes) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    spool.append(1, traces, kind=UNSCORED)
    leave(spool)
    names, found = replayed(tmp_path)
    assert (names, found.unscored) == (["k:a"], [])
    assert list(tmp_path.iterdir()) == []


def test_only_the_runs_of_the_same_store_and_project_are_taken(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a", None))
    leave(spool)
    assert replayed(tmp_path, {**ABOUT, "project": "shop"})[0] == []
    assert replayed(tmp_path)[0] == ["None:a"]


def test_a_store_that_is_away_leaves_the_files(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(1, spooled("a"))
    leave(spool)

    def away(runs: Sequence[tuple[str | None, Run]]) -> None:
        raise OSError("no route to host")

    with pytest.raises(OSError, match="no route"):
        replay(str(tmp_path), ABOUT, away)
    assert replayed(tmp_path)[0] == ["k:a"]


def test_folder_and_files_are_the_owners_alone(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "a" / "spool")
    spool.append(1, spooled("a"))
    (file,) = (tmp_path / "a" / "spool").iterdir()
    assert file.name.endswith(SUFFIX)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_files_are_bounded_and_shrink_again(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, limit=40 << 20)
    big = b"x" * (3 << 20)
    number = 0
    while spool.size + len(big) < 40 << 20:
        number += 1
        place = spool.append(number, big)
    with pytest.raises(SpoolFull, match="as much as it may"):
        spool.append(number + 1, big)
    assert spool.read(place) == big
    assert len(list(tmp_path.iterdir())) == 3
    spool.settle(number)
    assert spool.size < 1000
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_costs_one_record_and_hides_none(tmp_path: Path) -> None:
    """The limit of a file's size stands for the end of the disk: part of the record is written, then nothing more."""
    code = f"""
import resource, signal
from pathlib import Path
from tests.spool.test_files import spool_in, spooled
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = spool_in(Path({str(tmp_path)!r}))
spool.append(1, spooled("a"))
resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size + 50, resource.RLIM_INFINITY))
try:
    spool.append(2, b"x" * 1000)
    raise SystemExit("no error")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(3, spooled("c"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    names, found = replayed(tmp_path)
    assert (names, found.torn, found.missing) == (["k:a", "k:c"], 0, 1)
