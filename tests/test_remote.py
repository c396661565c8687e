"""The store at a remote address: what is there decides, and a damaged copy of it is fetched again."""

import shutil
from pathlib import Path

import fsspec
import pytest

from unlearnbench.store import Store

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


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/store"


def remote_files(url: str) -> dict[str, bytes]:
    files = fsspec.filesystem("memory")
    base = url.removeprefix("memory:/")
    return {path.removeprefix(base + "/"): files.cat_file(path) for path in files.find(base)}


def test_remote_roundtrip(url: str, tmp_path: Path) -> None:
    store = Store(url)
    assert store.get("models", KEY) is None
    assert store.keys("models") == []
    folder = store.build("models", KEY, write_weights)
    good = contents(folder)
    assert remote_files(url) == {f"models/ab/{KEY}/{name}": data for name, data in good.items()}
    assert store.has("models", KEY)
    assert store.keys("models") == [KEY]
    shutil.rmtree(tmp_path / "cache")  # another machine
    other = Store(url)
    assert contents(other.build("models", KEY, never)) == good
    assert contents(Store(url).build("models", KEY, never)) == good
    assert left_over(other.root) == []


def test_remote_place_decides_what_exists(url: str) -> None:
    folder = Store(url).build("models", KEY, write_weights)
    fsspec.filesystem("memory").rm(f"{url}/models/ab/{KEY}/manifest.json")  # as an upload that was killed leaves it
    store = Store(url)
    assert not store.has("models", KEY)
    assert store.keys("models") == []
    assert store.get("models", KEY) is None
    assert not folder.exists()
    store.build("models", KEY, lambda folder: (folder / "other").write_text("new") and None)
    assert sorted(remote_files(url)) == [f"models/ab/{KEY}/manifest.json", f"models/ab/{KEY}/other"]


def test_a_damaged_cached_copy_is_downloaded_again(url: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = Store(url).build("models", KEY, write_weights)
    good = contents(folder)
    flip(folder)
    assert contents(Store(url).build("models", KEY, never)) == good
    assert "model.safetensors has changed" in caplog.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncate", "model.safetensors has 0 bytes instead of 10240"),
        ("remove", "model.safetensors is missing"),
        ("manifest", "manifest.json is damaged"),
    ],
)
def test_a_damaged_remote_artefact_is_said_removed_and_built_again(
    url: str, tmp_path: Path, damage: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = fsspec.filesystem("memory")
    good = contents(Store(url).build("models", KEY, write_weights))
    shutil.rmtree(tmp_path / "cache")
    base = f"{url}/models/ab/{KEY}"
    if damage == "remove":
        files.rm(f"{base}/model.safetensors")
    else:
        files.pipe_file(f"{base}/{'manifest.json' if damage == 'manifest' else 'model.safetensors'}", b"")
    store = Store(url)
    assert store.get("models", KEY) is None
    assert said in caplog.text
    assert remote_files(url) == {}
    assert contents(store.build("models", KEY, write_weights)) == good
