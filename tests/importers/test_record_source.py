"""What a file may be that holds records: packed, encoded, broken, a table, parquet, an archive."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, Problem, read_recordings, recording_format
from tests.importers.foreign_files import inspect, only, openai, read

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "utf-8 with a mark": lambda data: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "utf-16 without a mark": lambda data: data.decode().encode("utf-16-le"),
    "utf-32": lambda data: data.decode().encode("utf-32"),
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "CR": lambda data: data.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("how", PACKED)
def test_packed_and_encoded_files(tmp_path: Path, how: str) -> None:
    chat = {
        "messages": [{"role": "user", "content": "Caf\u00e9 \u2028 \U0001f600"}, {"role": "assistant", "content": "Hi"}]
    }
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in (chat, openai()))
    path = tmp_path / "chats.jsonl"
    path.write_bytes(PACKED[how](text.encode()))
    first, second = read(path)
    assert first.trace.messages[0].text == "Caf\u00e9 \u2028 \U0001f600"
    assert second.trace.content_hash == only(tmp_path, openai()).trace.content_hash


def test_an_encoding_without_a_mark_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_bytes(json.dumps([{"role": "user", "content": "caf\u00e9"}], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(TraceError, match=r"not UTF-8\. Name its encoding, as in --encoding latin-1"):
        recording_format(path)
    (found,) = read(path, encoding="latin-1")
    assert found.trace.messages[0].text == "caf\u00e9"
    with pytest.raises(TraceError, match="encoding 'no-such' is unknown"):
        list(read_recordings("openai", path, encoding="no-such"))


def test_a_packed_file_that_was_cut_keeps_what_came_before(tmp_path: Path) -> None:
    lines = "".join(json.dumps({**openai(), "id": number}) + "\n" for number in range(20_000))
    path = tmp_path / "chats.jsonl.gz"
    data = gzip.compress(lines.encode())
    path.write_bytes(data[: len(data) // 2])
    found = list(read_recordings("openai", path))
    assert sum(isinstance(one, Imported) for one in found) > 100
    assert "cut short or broken" in str(found[-1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("// header\n", "a comment, which JSON does not know: take it out"),
        ("# header\n", "a comment, which JSON does not know: take it out"),
        ('{"messages": [],}\n', "a comma behind the last element"),
        ("{'messages': []}\n", "single quotes: Python wrote this"),
        ('{"a": 1, "a": 2}\n', "names the key 'a' twice in one object"),
        ('{"a": {"b": 1, "b": 2}}\n', "names the key 'b' twice in one object"),
        ('{"a": NaN}\n', "Write null in its place"),
        ('{"a": "\\ud83e"}\n', "half a surrogate pair"),
        ('{"a": "\x00"}\n', "not JSON: Invalid control character"),
    ],
)
def test_what_json_does_not_know_is_named_by_its_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps(openai())}\n{text}{json.dumps(openai())}\n")
    first, broken, last = read_recordings(None, path)
    assert isinstance(first, Imported)
    assert isinstance(last, Imported)
    assert isinstance(broken, Problem)
    assert broken.line == 2
    assert reason in broken.reason


def test_a_comma_behind_the_last_record_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    path.write_text(f"[{json.dumps(openai())},]")
    assert len(read(path)) == 1


def test_tables(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text('question,answer\n"Hi, there","Hello\nyou"\n')
    assert recording_format(pairs).name == "prompt-completion"
    (found,) = read(pairs)
    assert [message.text for message in found.trace.messages] == ["Hi, there", "Hello\nyou"]
    messages = tmp_path / "messages.csv"
    messages.write_text(
        "conversation_id;role;content\na;user;Hi\na;assistant;Hello\nb;user;Bye\nb;assistant;Goodbye\nbroken\n"
    )
    broken, first, second = read_recordings(None, messages)
    assert isinstance(first, Imported)
    assert isinstance(second, Imported)
    assert [message.text for message in first.trace.messages] == ["Hi", "Hello"]
    assert [message.text for message in second.trace.messages] == ["Bye", "Goodbye"]
    assert "line 6" in str(broken)
    assert "has 1 fields; the first line names 3" in str(broken)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "chats.parquet"
    chat = openai()["messages"]
    pq.write_table(pa.Table.from_pylist([{"messages": chat, "score": None}, {"messages": chat[:2], "score": 1}]), path)
    first, second = read(path)
    assert first.trace.content_hash == only(tmp_path, openai()).trace.content_hash
    assert len(second.trace.messages) == 2
    data = path.read_bytes()
    path.write_bytes(data[:-40] + data[-8:])
    with pytest.raises(TraceError, match="is no parquet file that can be read"):
        recording_format(path)


def test_an_inspect_archive(tmp_path: Path) -> None:
    log = inspect()
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps({"version": 2, "eval": log["eval"]}))
        archive.writestr("samples/1_epoch_1.json", json.dumps(log["samples"][0]))
        archive.writestr("samples/2_epoch_1.json", "{")
    found, broken = read_recordings(None, path)
    assert isinstance(found, Imported)
    same = only(tmp_path, log).trace
    assert (found.trace.id, found.trace.content_hash) == (same.id, same.content_hash)
    assert "samples/2_epoch_1.json: not JSON" in str(broken)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    with pytest.raises(TraceError, match="none of Inspect's"):
        recording_format(tmp_path / "other.zip")
