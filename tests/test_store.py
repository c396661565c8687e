"""The store under faults: killed writers, damaged files, full disks, processes at the same time."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from unlearnbench.store import Store, StoreError, save_tensors

KEY = "ab12cd34"


def write_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "nested").mkdir()
    (folder / "nested" / "config.json").write_text('{"layers": 2}')


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} is built a second time")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_over(root: Path) -> list[Path]:
    return [path for place in ("tmp", "locks") if (root / place).exists() for path in (root / place).iterdir()]


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_roundtrip_and_layout(store: Store) -> None:
    assert store.get("models", KEY) is None
    assert not store.has("models", KEY)
    assert not store.root.exists(), "looking writes nothing"
    folder = store.build("models", KEY, write_weights)
    assert folder == store.root / "models" / "ab" / KEY
    assert sorted(contents(folder)) == ["manifest.json", "model.safetensors", "nested/config.json"]
    assert store.has("models", KEY)
    assert store.build("models", KEY, never) == folder
    assert Store(store.root).get("models", KEY) == folder
    assert Store(f"file://{store.root}").get("models", KEY) == folder
    store.put("models", "ff00", write_weights)
    assert store.keys("models") == [KEY, "ff00"]
    assert store.keys("evidence") == []
    assert left_over(store.root) == []


def test_who_puts_second_gets_the_first_ones_artefact(store: Store) -> None:
    def slow(folder: Path) -> None:
        (folder / "who").write_text("second")
        other = Store(store.root)
        assert other.put("models", KEY, lambda inner: (inner / "who").write_text("first") and None)

    assert (store.put("models", KEY, slow) / "who").read_text() == "first"
    assert left_over(store.root) == []


@pytest.mark.parametrize("kind", ["tmp", "locks", "../x", "a/b", "x", ""])
def test_names_that_cannot_be_folders_are_refused(store: Store, kind: str) -> None:
    with pytest.raises(StoreError, match="kind"):
        store.has(kind, KEY)
    with pytest.raises(StoreError, match="kind"):
        store.keys(kind)
    if kind not in ("tmp", "locks"):
        with pytest.raises(StoreError, match="key"):
            store.put("models", kind, never)


def test_places_that_cannot_hold_a_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="nosuch"):
        Store("nosuch://bucket")


def truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "model.safetensors has 100 bytes instead of 10240"),
    "flipped byte": (flip, r"model.safetensors has changed"),
    "missing file": (lambda folder: (folder / "nested" / "config.json").unlink(), "nested/config.json is missing"),
    "extra file": (lambda folder: (folder / "extra").write_text(""), "extra is not in the manifest"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"), "manifest.json is damaged"),
    "no object": (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json is damaged"),
    "no files": (lambda folder: edit_manifest(folder, files=None), "manifest.json is damaged"),
    "no hashes": (lambda folder: edit_manifest(folder, files={"model.safetensors": {}}), "manifest.json is damaged"),
    "other format": (lambda folder: edit_manifest(folder, format=0), "manifest.json is damaged"),
    "other artefact's": (lambda folder: edit_manifest(folder, key="ff00"), "manifest.json is damaged"),
    "escaping": (lambda folder: edit_manifest(folder, files={"../x": {"bytes": 0, "sha256": ""}}), "manifest.json is dam"),
}


@pytest.mark.parametrize("known", [False, True], ids=["fresh process", "verified before"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artefact_is_said_removed_and_built_again(
    store: Store, damage: str, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store.build("models", KEY, write_weights)
    good = contents(folder)
    reader = store if known else Store(store.root)
    DAMAGES[damage][0](folder)
    assert reader.get("models", KEY) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"artefact models/{KEY}: " in record.getMessage()
    assert DAMAGES[damage][1] in record.getMessage()
    assert not folder.exists()
    assert contents(reader.build("models", KEY, write_weights)) == good
    assert left_over(store.root) == []


def test_a_file_is_hashed_once_per_process_while_it_does_not_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.build("models", KEY, write_weights)
    hashed: list[str] = []

    def counting(path: Path, sync: bool = False) -> str:
        hashed.append(path.name)
        return real(path, sync)

    module = sys.modules[Store.__module__]
    real = module.digest
    monkeypatch.setattr(module, "digest", counting)
    store.get("models", KEY)
    assert hashed == [], "hashed when it was written"
    reader = Store(store.root)
    reader.get("models", KEY)
    reader.get("models", KEY)
    assert hashed == ["model.safetensors", "config.json"]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert reader.get("models", KEY) == folder, "only the time changed"
    assert len(hashed) == 4


def test_a_file_removed_while_it_is_verified_makes_the_artefact_absent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.build("models", KEY, write_weights)

    def vanishing(path: Path, sync: bool = False) -> str:
        path.unlink()
        return real(path, sync)

    module = sys.modules[Store.__module__]
    real = module.digest
    monkeypatch.setattr(module, "digest", vanishing)
    assert Store(store.root).get("models", KEY) is None
    assert not folder.exists()


def test_a_failing_writer_leaves_nothing(store: Store) -> None:
    def failing(folder: Path) -> None:
        write_weights(folder)
        raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError, match="not finite"):
        store.build("models", KEY, failing)
    with pytest.raises(StoreError, match=r"link cannot be stored"):
        store.put("models", KEY, lambda folder: (folder / "link").symlink_to("/etc/hosts"))
    with pytest.raises(StoreError, match=r"manifest.json cannot be stored"):
        store.put("models", KEY, lambda folder: (folder / "manifest.json").write_text("{}") and None)
    assert left_over(store.root) == []
    assert store.keys("models") == []


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_kill_at_every_system_call_then_the_same_command_gives_the_same_artefact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The child kills itself at its n-th file operation, for every n until it gets to the end."""
    good = contents(Store(tmp_path / "good").build("models", KEY, write_weights))
    root, seen_unfinished, moment = tmp_path / "store", 0, 0
    while True:
        moment += 1

        def until_killed(moment: int = moment) -> None:
            events = 0

            def count(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal events
                if event.startswith(("os.", "open", "fcntl.", "shutil.")):
                    events += 1
                    if events == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            Store(root).build("models", KEY, write_weights)

        status = forked(until_killed)
        seen_unfinished += any(path.name.startswith("tmp@") for path in left_over(root))
        store = Store(root)
        assert contents(store.build("models", KEY, write_weights)) == good
        store.put("models", "ff00", write_weights)  # whoever writes next sweeps, even if the artefact was complete
        assert left_over(root) == []
        assert sorted(path.name for path in root.iterdir()) == ["locks", "models", "tmp"]
        assert store.keys("models") == [KEY, "ff00"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
        for folder in (root / "models").glob("*/*"):
            store._remove(folder)
    assert seen_unfinished > 10, "the moments include the middle of writing"
    assert caplog.records == [], "an unfinished artefact is never taken for a damaged one"


def test_everything_is_on_disk_before_the_artefact_appears(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would need: every file and folder synced, then the rename, then the folders above it."""
    log: list[str] = []

    def sync(handle: int) -> None:
        log.append(os.readlink(f"/proc/self/fd/{handle}"))

    def rename(source: Path, target: Path) -> None:
        log.append("rename")
        os.replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    folder = store.build("models", KEY, write_weights)
    before, after = log[: log.index("rename")], log[log.index("rename") + 1 :]
    staged = next(path for path in before if path.endswith("/model.safetensors")).removesuffix("/model.safetensors")
    synced = {path.removeprefix(staged) for path in before if not path.endswith(".tmp")}
    assert synced == {"", "/nested", "/nested/config.json", "/model.safetensors"}
    assert any("/.manifest.json." in path for path in before), "synced under its temporary name"
    assert after == [str(parent) for parent in (folder.parent, store.root / "models", store.root)]


def test_a_live_writer_keeps_its_temporary_folder_and_a_killed_one_does_not(store: Store) -> None:
    program = (
        "import sys, time; from unlearnbench.store import Store\n"
        "def write(folder):\n"
        "    (folder / 'half').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        f"Store(sys.argv[1]).build('models', '{KEY}', write)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, store.root], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"writing\n"
            store.build("models", "ff00", write_weights)  # sweeps
            assert len(list((store.root / "tmp").glob("*/*/half"))) == 1
        finally:
            writer.kill()
    assert left_over(store.root) != []
    assert "half" not in contents(store.build("models", KEY, write_weights))
    assert left_over(store.root) == []


# --- processes at the same time --------------------------------------------------------------------------------------


def test_processes_that_want_the_same_artefact_build_it_once(store: Store, tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    def write(folder: Path) -> None:
        with journal.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)  # the others arrive meanwhile
        write_weights(folder)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            good = "model.safetensors" in contents(Store(store.root).build("models", KEY, write))
            os._exit(0 if good else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert journal.read_text() == "built\n"
    assert left_over(store.root) == []


def test_threads_that_want_the_same_artefact_build_it_once(store: Store) -> None:
    built: list[Path] = []
    started = threading.Event()

    def write(folder: Path) -> None:
        built.append(folder)
        started.set()
        time.sleep(0.2)  # the second thread waits for the lock meanwhile
        write_weights(folder)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.build, "models", KEY, write)
        started.wait()
        assert pool.submit(store.build, "models", KEY, write).result() == first.result()
    assert len(built) == 1


def test_processes_that_find_the_same_damage_build_it_once(store: Store, tmp_path: Path) -> None:
    flip(store.build("models", KEY, write_weights))
    test_processes_that_want_the_same_artefact_build_it_once(store, tmp_path)


def test_a_lock_excludes_although_its_file_comes_and_goes(tmp_path: Path) -> None:
    """Four processes count up a file, each step a read and a write, while a fifth keeps sweeping the lock's file."""
    from unlearnbench.files import locked

    counter, lock, steps = tmp_path / "counter", tmp_path / "locks" / "x", 50
    counter.write_text("0")

    def count() -> None:
        for _ in range(steps):
            with locked(lock):
                value = int(counter.read_text())
                os.sched_yield()
                counter.write_text(str(value + 1))

    children = [child for _ in range(4) if (child := os.fork()) or (count(), os._exit(0))]
    for _ in range(steps):
        with locked(lock, wait=False):
            pass
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert counter.read_text() == str(4 * steps)
    assert not lock.exists()


# --- full disks ------------------------------------------------------------------------------------------------------


def fill_file(folder: Path) -> None:
    (folder / "big").write_bytes(bytes(1 << 20))


def fill_tensors(folder: Path) -> None:
    save_tensors(folder, {"weight": torch.empty(1 << 18)})  # no arithmetic: a forked child has no OpenMP threads


def fill_device(folder: Path) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def fill_many(folder: Path) -> None:
    """Only the manifest, which names them all, is over the limit."""
    for index in range(700):
        (folder / f"{index:04d}").touch()


@pytest.mark.parametrize("write", [fill_file, fill_tensors, fill_device, fill_many])
@pytest.mark.parametrize("method", ["build", "put"])
def test_a_full_disk_is_said_and_leaves_nothing(store: Store, write: Callable[[Path], None], method: str) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(StoreError, match=f"no room to write in {store.root}: "):
            getattr(store, method)("models", KEY, write)

    assert forked(limited) == 0
    assert left_over(store.root) == []
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert store.build("models", KEY, write_weights)


def test_other_errors_of_the_system_are_not_called_a_full_disk(store: Store) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        store.build("models", KEY, denied)
