"""CIFAR from parquet, from the hub's layout through `datasets`, and from the Python batches; what is refused, and that nothing is run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_pictures import batch, labels10, labels100, pictures, png, write_cifar10, write_cifar100, write_parquet

from unlearnbench.api import UserError
from unlearnbench.nets import load_published_resnet20
from unlearnbench.scenarios import cifar_files
from unlearnbench.scenarios.cifar_batches import plain_content, read_batch
from unlearnbench.scenarios.cifar_classes import CIFAR10, CIFAR100, COARSE, SUPERCLASSES, TRANSFER
from unlearnbench.scenarios.cifar_files import PUBLISHED10, PUBLISHED100

N_TRAIN, N_TEST = 40, 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Data sets of forty and twenty rows, and no folder of real ones."""
    monkeypatch.delenv("UNLEARNBENCH_DATA", raising=False)
    monkeypatch.setitem(cifar_files.COUNTS, "train", N_TRAIN)
    monkeypatch.setitem(cifar_files.COUNTS, "test", N_TEST)
    yield
    cifar_files._rows.cache_clear()


def expected(n: int, seed: int) -> Any:
    return torch.from_numpy(pictures(n, seed=seed).transpose(0, 3, 1, 2))


# ------------------------------------------------------------------------------------------------------------------- parquet


@pytest.mark.parametrize("below", ["", "plain_text"])
def test_parquet_is_read_in_the_order_of_its_files(tmp_path: Path, below: str) -> None:
    rows = PUBLISHED10.rows("train", str(write_cifar10(tmp_path, train=N_TRAIN, test=N_TEST) / below))
    assert torch.equal(rows.pixels(range(N_TRAIN)), expected(N_TRAIN, 5))
    assert torch.equal(rows.pixels([7, 3]), expected(N_TRAIN, 5)[[7, 3]])
    assert rows.labels["label"].tolist() == labels10(N_TRAIN)["label"]


def test_a_folder_below_the_variable_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path / "cifar100", test=N_TEST)
    monkeypatch.setenv("UNLEARNBENCH_DATA", str(tmp_path))
    rows = PUBLISHED100.rows("test", None)
    assert {name: values.tolist() for name, values in rows.labels.items()} == labels100(N_TEST)


def test_the_hub_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the hub's layout stands in for the repository; the library is the real one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_cifar10(tmp_path, train=N_TRAIN, test=N_TEST)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n"
        "  - {split: train, path: plain_text/train-*}\n  - {split: test, path: plain_text/test-*}\n---\n"
    )
    rows = cifar_files._from_hub(replace(PUBLISHED10, hub=str(folder)), "train")
    assert torch.equal(rows.pixels(range(N_TRAIN)), expected(N_TRAIN, 5))
    assert rows.labels["label"].tolist() == labels10(N_TRAIN)["label"]


def test_a_hub_that_cannot_be_reached_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load .*nowhere, split 'test': .*give its folder as data_dir"):
        cifar_files._from_hub(replace(PUBLISHED10, hub=str(tmp_path / "nowhere")), "test")


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path, test=N_TEST)
    message = (
        r"neither train-\*.parquet nor cifar-100-python/train: the 40 rows of 'train' of uoft-cs/cifar100 are not there; it has: cifar100/"
    )
    with pytest.raises(UserError, match=message):
        PUBLISHED100.rows("train", str(folder))


def damaged(folder: Path, kind: str) -> None:
    """A test part of CIFAR-10 in which one thing is wrong."""
    encoded: list[bytes | None] = [png(image) for image in pictures(N_TEST)]
    labels: dict[str, list[Any]] = {**labels10(N_TEST)}
    path = folder / "test-00000-of-00001.parquet"
    if kind == "count":
        encoded, labels = encoded[1:], {"label": labels["label"][1:]}
    if kind == "label":
        labels["label"][4] = 10
    if kind == "no label":
        labels["label"][4] = None
    if kind == "column":
        labels = {"klass": labels["label"]}
    if kind == "picture":
        encoded[6] = encoded[6][:60]  # type: ignore[index]
    if kind == "no picture":
        encoded[6] = None
    if kind == "size":
        encoded[6] = png(pictures(1, size=16)[0])
    if kind == "shard":
        path = folder / "test-00000-of-00002.parquet"
    write_parquet(path, encoded, labels)
    if kind == "file":
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("count", r"has 19 rows of 'test'; uoft-cs/cifar10 has 20 there"),
        ("label", r"row 5: label is 10; allowed: 0 to 9"),
        ("no label", r"row 5: label is None; allowed: 0 to 9"),
        ("column", r"has no column 'label'; it has: img, klass"),
        ("picture", r"row 7 is no picture that can be read: "),
        ("no picture", r"row 7: img holds no picture"),
        ("size", r"row 7 is a picture of 16x16 pixels; it must have 32x32"),
        ("shard", r"has 1 files test-\*-of-00002.parquet; all 2 are needed"),
        ("file", r"test-00000-of-00001.parquet is no parquet file that can be read: "),
    ],
)
def test_what_is_damaged_is_one_error(tmp_path: Path, kind: str, message: str) -> None:
    damaged(tmp_path, kind)
    with pytest.raises(UserError, match=message) as caught:
        PUBLISHED10.rows("test", str(tmp_path)).pixels(range(N_TEST))
    assert "\n" not in str(caught.value)


def test_a_class_in_another_super_class_is_refused(tmp_path: Path) -> None:
    labels = labels100(N_TEST)
    labels["coarse_label"][3] = (labels["coarse_label"][3] + 1) % 20
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [png(image) for image in pictures(N_TEST)], labels)
    with pytest.raises(UserError, match=r"row 4: bear is in super-class 9, not in large_carnivores"):
        PUBLISHED100.rows("test", str(tmp_path))


# ------------------------------------------------------------------------------------------------------------ Python batches


def published(contents: dict[str, bytes], folder: Path) -> Any:
    """CIFAR-10 whose official batches are these."""
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(content)
    sums = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}
    return replace(PUBLISHED10, sums={"train": sums, "test": sums})


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_batches_give_the_rows_in_order(tmp_path: Path, below: str) -> None:
    images, labels = pictures(N_TRAIN), labels10(N_TRAIN)["label"]
    halves = {f"data_batch_{i + 1}": batch(images[20 * i : 20 * i + 20], {"labels": labels[20 * i : 20 * i + 20]}) for i in range(2)}
    rows = published(halves, tmp_path).rows("train", str(tmp_path / below))
    assert torch.equal(rows.pixels(range(N_TRAIN)), expected(N_TRAIN, 0))
    assert torch.equal(rows.pixels([30, 2]), expected(N_TRAIN, 0)[[30, 2]])
    assert rows.labels["label"].tolist() == labels


class Bomb:
    """Would make a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_batch_is_refused_without_being_run(tmp_path: Path, protocol: int) -> None:
    hostile = pickle.dumps({"data": Bomb(tmp_path / "trace"), "labels": []}, protocol=protocol)
    with pytest.raises(UserError, match=r"it names \w+\.mkdir; allowed: numpy arrays"):
        published({"data_batch_1": hostile}, tmp_path / "data").rows("train", str(tmp_path / "data"))
    assert not (tmp_path / "trace").exists()
    pickle.loads(hostile)  # it would have done it
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"Pid\n.", b"\x80\x04", b"", b"}junk"])
def test_nothing_but_plain_values_is_read(content: bytes) -> None:
    with pytest.raises(UserError, match="cannot be read as a batch of pictures") as caught:
        plain_content(content, "batch")
    assert "\n" not in str(caught.value)


def test_a_batch_with_another_sum_is_not_even_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnbench.scenarios.cifar_batches.plain_content", lambda *given: pytest.fail("it was read"))
    (tmp_path / "data_batch_1").write_bytes(batch(pictures(3), labels10(3)))
    with pytest.raises(UserError, match=r"data_batch_1 has the MD5 sum [0-9a-f]{32}; the official file has c99cafc15224"):
        PUBLISHED10.rows("train", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no array `data` of 3072 bytes a row"),
        ({"data": np.zeros((2, 3), dtype=np.uint8), "labels": [0, 1]}, "holds no array `data` of 3072 bytes a row"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "holds no array `data` of 3072 bytes a row"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0]}, "holds no list 'labels' of 2 class numbers"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8)}, "holds no list 'labels' of 2 class numbers"),
    ],
)
def test_a_batch_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "one"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(UserError, match=message):
        read_batch(path, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), {"label": "labels"})


# ------------------------------------------------------------------------------------------------------------------- classes


def test_tables_of_classes_agree_with_each_other() -> None:
    assert len(CIFAR100) == len(set(CIFAR100)) == 100
    assert len(COARSE) == 20
    assert {len(names) for names in SUPERCLASSES.values()} == {5}
    assert set(TRANSFER) == set(COARSE)
    for near, far in TRANSFER.values():
        assert len(near) == len(far) == 3
        assert len({*near, *far} & set(CIFAR10)) == 6


# ----------------------------------------------------------------------------------------------------------------- real data


def test_the_real_files_hold_what_was_published(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (data_root / "cifar10").is_dir() or not (data_root / "cifar100").is_dir():
        pytest.skip(f"no CIFAR below {data_root}")
    monkeypatch.undo()
    assert cifar_files.COUNTS == {"train": 50_000, "test": 10_000}
    for published in (PUBLISHED10, PUBLISHED100):
        rows = published.rows("test", str(data_root / published.under))
        for column, (_, classes) in published.columns.items():
            assert rows.labels[column].bincount().tolist() == [10_000 // classes] * classes
        assert rows.pixels([0, 9_999]).float().std() > 10


@pytest.mark.slow  # decodes and classifies 10,000 pictures
def test_the_published_resnet20_has_its_accuracy_on_the_test_images(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = data_root / "models" / "resnet20-12fca82f.th"
    if not weights.is_file() or not (data_root / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 or no published ResNet-20 below {data_root}")
    monkeypatch.undo()
    rows, model = PUBLISHED10.rows("test", str(data_root / "cifar10")), load_published_resnet20(weights)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (rows.pixels(range(len(rows))).float() / 255 - mean) / std
    with torch.no_grad():
        hits = [int((model(images[at : at + 500]).argmax(1) == rows.labels["label"][at : at + 500]).sum()) for at in range(0, 10_000, 500)]
    assert 100 * sum(hits) / 10_000 == pytest.approx(91.7, abs=0.1)
