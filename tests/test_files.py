"""Keys of contents, JSON that is never half written, and locks that a fork cannot keep."""

import enum
import errno
import fcntl
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from unlearnbench.files import StoreError, content_key, explained, locked, write_json


class Level(enum.StrEnum):
    TEXT = "T1"


def test_content_key_is_the_hash_of_canonical_json() -> None:
    # printf '{"a":[1,2.5,null,true],"b":"\\u00e9"}' | sha256sum
    expected = "c66fca9242300f12718a1c58"
    assert content_key({"b": "é", "a": (1, 2.5, None, True)}) == expected
    assert content_key({"a": [1, 2.5, None, True], "b": "é"}) == expected
    assert content_key(Level.TEXT) == content_key("T1")


def test_content_key_tells_values_apart() -> None:
    values = [1, 1.5, True, None, "1", [1], [[1]], {"1": 1}, {"1": 2}, {"2": 1}, [], {}, "", 0, False]
    assert len({content_key(value) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ({"a": [{"b": Path("x")}]}, TypeError, r"the value\['a'\]\[0\]\['b'\] is .*Path"),
        ({"a": {1: 2}}, TypeError, r"the value\['a'\] has the name 1 \(int\); allowed: strings"),
        ({1, 2}, TypeError, r"the value is \{1, 2\} \(set\); allowed"),
        ([b"x"], TypeError, r"the value\[0\] is b'x' \(bytes\)"),
        ({"lr": float("nan")}, ValueError, r"the value\['lr'\] is nan; allowed: finite numbers, or None"),
        ([1.0, float("-inf")], ValueError, r"the value\[1\] is -inf"),
    ],
)
def test_what_json_cannot_say_is_refused(value: object, error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        content_key(value)
    with pytest.raises(error, match=said):
        write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_write_json_is_sorted_readable_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"b": None, "a": ["é"]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    "é"\n  ],\n  "b": null\n}\n'
    with path.open() as reader:
        write_json(str(path), [1])
        assert json.load(reader) == {"a": ["é"], "b": None}, "who has opened the old file reads the old one"
    assert json.loads(path.read_text()) == [1]
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_write_json_on_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write_json(path, "x" * 1000)
        except StoreError as error:
            os._exit(0 if f"no room to write in {tmp_path}" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_text() == '"old"\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota"), RuntimeError("x (os error 28)")])
def test_every_kind_of_full_disk_names_the_outermost_folder(error: Exception) -> None:
    with pytest.raises(StoreError, match="no room to write in outer: ") as caught, explained(Path("outer")), explained(Path("inner")):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("x (os error 13)"), StoreError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(Path("outer")):
        raise error
    assert caught.value is error


def test_write_json_leaves_a_live_writers_file_and_takes_a_killed_ones(tmp_path: Path) -> None:
    path, live, dead = (tmp_path / name for name in ("[x].json", ".[x].json.1.tmp", ".[x].json.2.tmp"))
    dead.write_text("half")
    with locked(live):
        write_json(path, 1)
        assert sorted(tmp_path.iterdir()) == sorted([path, live])
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_held_elsewhere_is_not_taken_and_one_let_go_is_free_although_a_child_lives(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "x"
    with locked(lock) as mine:
        assert mine
        with locked(lock, wait=False) as second:
            assert not second
        handle = os.open(lock, os.O_RDWR)
        child = os.fork()  # inherits a copy of the lock's handle
        if child == 0:
            signal.pause()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the child's copy kept the lock
    finally:
        os.close(handle)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not lock.exists()
