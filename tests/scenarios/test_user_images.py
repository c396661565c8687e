"""A user's class folders: what is read, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_pictures import pictures, png, write_class_folders

from unlearnbench.api import UserError
from unlearnbench.scenarios.user_images import Images

SMALL: dict[str, Any] = {"net": "resnet20", "width": 2, "depth": 1, "epochs": 1, "batch_size": 8, "lr": 0.05}


def made(folder: Path, *, test: bool = True, **fields: Any) -> Images:
    write_class_folders(folder / "train", {"ant": 30, "bee": 20, "cow": 25}, seed=0)
    if test:
        write_class_folders(folder / "test", dict.fromkeys(("ant", "bee", "cow"), 12), seed=10)
    return Images(**{"request": "class", "data_dir": str(folder), **SMALL, **fields})


def test_pictures_carry_the_class_of_their_folder(tmp_path: Path) -> None:
    scenario = made(tmp_path)
    train = scenario.without(frozenset())
    assert train.labels.bincount().tolist() == [30, 20, 25]
    pixels = torch.from_numpy(pictures(30, size=8).transpose(0, 3, 1, 2))
    torch.testing.assert_close(((train.images[:30] * 0.25 + 0.5) * 255).round().to(torch.uint8), pixels)
    assert len(scenario.split("test")) + len(scenario.split("holdout")) + len(scenario.method_view()["validation"]) == 24 - 2 + 2


@pytest.mark.parametrize(("target", "own", "other"), [(None, 0, 1), ("bee", 1, 2), ("cow", 2, 0)])
def test_the_target_is_forgotten_and_the_next_is_for_validation(tmp_path: Path, target: str | None, own: int, other: int) -> None:
    scenario = made(tmp_path, target=target)
    assert set(scenario.split("forget").labels.tolist()) == {own}
    assert set(scenario.with_request(scenario.validation_request).split("forget").labels.tolist()) == {other}
    assert {int(scenario.shadow_request(i).split("forget").labels[0]) for i in range(8)} == {0, 1, 2} - {own}


def test_without_a_test_folder_one_in_five_is_kept_unseen(tmp_path: Path) -> None:
    scenario = made(tmp_path, test=False)
    assert scenario.without(frozenset()).labels.bincount().tolist() == [24, 16, 20]
    seen = {image.numpy().tobytes() for image in scenario.without(frozenset()).images}
    assert not seen & {image.numpy().tobytes() for image in scenario.split("test").images}


def test_a_model_is_trained_on_the_pictures(tmp_path: Path) -> None:
    scenario = made(tmp_path, request="random10")
    (model,) = scenario.train([scenario.plan("oracle")], [0])
    assert model(scenario.split("forget").images).shape == (20, 3)


def damage(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "train" / "bee" / "003.png").write_bytes(text) and None


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda folder: None, {"target": "yak"}, r"target is 'yak', which is no class of .*; it has: ant, bee, cow"),
        (damage(b"no picture"), {}, r"train/bee/003.png is no picture that can be read"),
        (damage(png(pictures(1, size=9)[0])), {}, r"train/bee/003.png is a picture of 9x9 pixels; it must have 8x8"),
        (lambda folder: write_class_folders(folder / "test", {"yak": 2}), {}, r"test/yak shows a class that is not trained on"),
        (lambda folder: None, {"train_per_class": 26}, r"train_per_class is 26; of label 1 .*train has 20 to give"),
        (lambda folder: None, {"request": "random50", "forget_size": 60}, r"'random50' forgets 60 pictures .*; images has 75 to train on"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: Callable[[Path], Any], fields: dict[str, Any], message: str) -> None:
    scenario = made(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        replace(scenario, **fields).split("forget")
    assert "\n" not in str(caught.value)


def test_folders_of_another_form_are_refused(tmp_path: Path) -> None:
    def ask(folder: Path) -> None:
        Images(request="class", data_dir=str(folder), **SMALL).split("forget")

    with pytest.raises(UserError, match=r"there is no folder .*train; pictures lie in train/<class>"):
        ask(tmp_path)
    write_class_folders(tmp_path / "one" / "train", {"ant": 3})
    with pytest.raises(UserError, match="has 1 class folders with pictures; at least 2 are needed"):
        ask(tmp_path / "one")
    write_class_folders(tmp_path / "tiny" / "train", {"ant": 3, "bee": 3}, size=4)
    with pytest.raises(UserError, match="4x4 pixels; pictures are squares of 8 pixels or more"):
        ask(tmp_path / "tiny")
