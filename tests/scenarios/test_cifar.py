"""CIFAR's scenarios on made-up pictures: what requests name, that copies stay together, and what models are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_pictures import MADE_UP_COUNTS, labels10, picture_settings, pictures, png, write_parquet
from torch import Tensor

from unlearnbench import ensembles, registry
from unlearnbench.api import Plan, UserError
from unlearnbench.nets import ResNet9
from unlearnbench.scenarios import cifar_files
from unlearnbench.scenarios.cifar import MEAN10, STD10, Cifar10, Cifar100
from unlearnbench.scenarios.cifar_classes import CIFAR10, CIFAR100, COARSE, COARSE_OF, SUPERCLASSES, TRANSFER
from unlearnbench.scenarios.images import ImageData
from unlearnbench.scenarios.picture_features import nearest
from unlearnbench.stacking import Stack
from unlearnbench.training import Hardware, hardware

INSTANCES = ["random1", "random10", "random50", "mislabelled", "coherent", "neighbours", "memorised_high", "memorised_low"]
SMALL: dict[str, Any] = {"net": "resnet20", "width": 2, "depth": 1, "epochs": 1, "batch_size": 64, "lr": 0.05}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings of both scenarios on made-up files."""
    return {name: picture_settings(name, tmp_path_factory.mktemp(name)) for name in ("cifar10", "cifar100")}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARNBENCH_DATA", raising=False)
    monkeypatch.setattr(cifar_files, "COUNTS", MADE_UP_COUNTS)


@pytest.fixture
def ten(folders: dict[str, dict[str, Any]]) -> Cifar10:
    made: Cifar10 = registry.make("scenarios", "cifar10", {"request": "random10", **folders["cifar10"]})
    return made


@pytest.fixture
def hundred(folders: dict[str, dict[str, Any]]) -> Cifar100:
    made: Cifar100 = registry.make("scenarios", "cifar100", {"request": "random10", **folders["cifar100"]})
    return made


def contents(data: ImageData) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def as_pixels(images: Tensor) -> Tensor:
    """Standardised pictures as they were, 0 to 255."""
    mean, std = torch.tensor(MEAN10)[:, None, None], torch.tensor(STD10)[:, None, None]
    return ((images * std + mean) * 255).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------------------------ requests


def test_pictures_are_those_of_the_files_with_their_labels(ten: Cifar10) -> None:
    train = ten.train_view(ten.plan("original")).data.train
    assert isinstance(train, ImageData)
    rows = [int(row.removeprefix("cifar10-train-")) for row in train.ids]
    assert rows == list(range(200))
    assert torch.equal(as_pixels(train.images), torch.from_numpy(pictures(200, seed=5).transpose(0, 3, 1, 2)))
    assert train.labels.tolist() == labels10(200)["label"]
    test = ten.split("test")
    rows = [int(row.removeprefix("cifar10-test-")) for row in test.ids]
    assert torch.equal(as_pixels(test.images), torch.from_numpy(pictures(1000, seed=4).transpose(0, 3, 1, 2))[rows])


@pytest.mark.parametrize("name", ["class_cat", *INSTANCES])
def test_splits_share_no_picture_and_validation_forgets_others(ten: Cifar10, name: str) -> None:
    scenario = ten.with_request(name)
    parts = [contents(scenario.split(split)) for split in scenario.splits] + [contents(scenario.method_view()["validation"])]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(parts[0]) + len(parts[1]) == 200
    assert min(map(len, parts)) >= 18
    other = scenario.with_request(scenario.validation_request)
    assert len(other.forget_rows()) == len(scenario.forget_rows())
    assert not other.forget_rows() & scenario.forget_rows()
    if name in ("random1", "random10", "random50", "mislabelled", "neighbours"):
        assert replace(scenario, split_seed=1).forget_rows() != scenario.forget_rows()


def test_sizes_are_the_shares_of_the_training_pictures_and_at_least_twenty(ten: Cifar10) -> None:
    sizes = {name: len(ten.with_request(name).forget_rows()) for name in INSTANCES}
    assert sizes == dict.fromkeys(INSTANCES, 20) | {"random50": 100}
    assert len(replace(ten, forget_size=33).forget_rows()) == 33


def test_a_class_is_all_of_its_pictures_and_no_other_split_shows_it(ten: Cifar10) -> None:
    scenario = ten.with_request("class_ship")
    assert scenario.validation_request == "class_truck"
    assert ten.with_request("class_truck").validation_request == "class_airplane"
    assert scenario.split("forget").labels.tolist() == [CIFAR10.index("ship")] * 20
    for split in ("retain", "test"):
        assert set(scenario.split(split).labels.tolist()) == set(range(10)) - {CIFAR10.index("ship")}
    assert CIFAR10.index("ship") not in scenario.split("holdout").labels.tolist()


def test_wrong_labels_are_wrong_and_the_originals_own(ten: Cifar10) -> None:
    scenario = ten.with_request("mislabelled")
    truth = {row: int(row.rpartition("-")[2]) % 10 for split in scenario.splits for row in scenario.split(split).ids}
    for split, wrong in (("forget", True), ("holdout", True), ("retain", False), ("test", False)):
        data = scenario.split(split)
        assert [label != truth[row] for row, label in zip(data.ids, data.labels.tolist(), strict=True)] == [wrong] * len(data)
    original = scenario.train_view(scenario.plan("original")).data.train
    assert isinstance(original, ImageData)
    labels = dict(zip(original.ids, original.labels.tolist(), strict=True))
    assert [labels[row] for row in scenario.split("forget").ids] == scenario.split("forget").labels.tolist()


def test_neighbours_are_those_of_one_of_them(ten: Cifar10) -> None:
    scenario, pool = ten.with_request("neighbours"), ten.pool()
    forget = set(scenario.own().forget)
    groups = {anchor: set(nearest(pool.features, anchor, list(pool.train), 20)) for anchor in forget}
    assert forget in groups.values()


def test_a_coherent_group_is_the_top_of_the_first_component(ten: Cifar10) -> None:
    pool, scenario = ten.pool(), ten.with_request("coherent")
    for number, request in enumerate((scenario, scenario.with_request("validation_coherent"))):
        scores = pool.components[number]
        inside, outside = set(request.own().forget), set(pool.train) - set(request.own().forget) - set(scenario.own().forget)
        assert min(float(scores[row]) for row in inside) >= max(float(scores[row]) for row in outside)
        held = set(request.own().holdout)
        rest = set(pool.unseen) - held - set(scenario.own().holdout)
        assert min(float(scores[row]) for row in held) >= max(float(scores[row]) for row in rest)


def test_memorised_pictures_are_those_of_the_highest_and_the_lowest_score(ten: Cifar10) -> None:
    scores = ten.pool().memorisation
    high, low = (set(ten.with_request(f"memorised_{end}").own().forget) for end in ("high", "low"))
    others = set(scores) - high - low
    assert min(scores[row] for row in high) >= max(scores[row] for row in others)
    assert max(scores[row] for row in low) <= min(scores[row] for row in others)


@pytest.mark.parametrize("name", ["class_cat", *INSTANCES])
def test_shadows_forget_as_many_others_and_share_the_original(ten: Cifar10, name: str) -> None:
    scenario = ten.with_request(name)
    shadows = [scenario.shadow_request(index) for index in range(3)]
    for shadow in shadows:
        assert len(shadow.forget_rows()) == len(scenario.forget_rows())
        assert not shadow.forget_rows() & scenario.forget_rows()
        assert not contents(shadow.split("forget")) & contents(shadow.split("holdout"))
        assert shadow.training_settings(shadow.plan("original")) == scenario.training_settings(scenario.plan("original"))
    if name not in ("random50", "class_cat"):
        assert len({shadow.forget_rows() for shadow in shadows}) == 3


# --------------------------------------------------------------------------------------------------- super-classes, transfer


def test_a_super_class_is_one_of_twenty_labels(hundred: Cifar100) -> None:
    scenario = hundred.with_request("superclass_trees")
    assert scenario.classes == 20
    assert scenario.validation_request == "superclass_vehicles_1"
    assert scenario.split("forget").labels.tolist() == [COARSE.index("trees")] * 10
    fine = {CIFAR100[int(row.rpartition("-")[2]) % 100] for row in scenario.split("forget").ids}
    assert fine == set(SUPERCLASSES["trees"])
    assert COARSE.index("trees") not in scenario.split("test").labels.tolist()
    assert hundred.classes == hundred.with_request("class_otter").classes == 100


def test_a_sub_class_has_the_label_of_its_siblings_which_stay(hundred: Cifar100) -> None:
    scenario = hundred.with_request("subclass_otter")
    assert scenario.asked().kind == "instances"
    for split in ("forget", "holdout"):
        data = scenario.split(split)
        assert {CIFAR100[int(row.rpartition("-")[2]) % 100] for row in data.ids} == {"otter"}
        assert set(data.labels.tolist()) == {COARSE.index("aquatic_mammals")}
    assert scenario.split("retain").labels.tolist().count(COARSE.index("aquatic_mammals")) == 8
    assert scenario.training_settings(scenario.plan("original")) == hundred.with_request("superclass_fish").training_settings(
        Plan(role="original", rows=frozenset())
    )
    assert scenario.shadow_request(3).split("holdout").ids == scenario.split("holdout").ids


def test_near_and_far_are_pictures_of_cifar10s_test_part(hundred: Cifar100) -> None:
    for request, coarse in (("superclass_people", "people"), ("subclass_maple_tree", "trees"), ("class_bus", "vehicles_1")):
        scenario = hundred.with_request(request)
        for split, names in (("near", TRANSFER[coarse].near), ("far", TRANSFER[coarse].far)):
            data = scenario.split(split)
            assert data.labels.bincount(minlength=10).tolist() == [10 * (name in names) for name in CIFAR10]
            assert [int(row.rpartition("-")[2]) % 10 for row in data.ids] == data.labels.tolist()
    for request in ("coherent", "random50"):
        most = hundred.with_request(request)
        coarse = [COARSE.index(COARSE_OF[CIFAR100[int(row.rpartition("-")[2]) % 100]]) for row in most.split("forget").ids]
        top = COARSE[int(np.bincount(coarse).argmax())]
        assert set(most.split("near").labels.tolist()) == {CIFAR10.index(name) for name in TRANSFER[top].near}


def test_the_published_training_part_of_cifar100_is_asked_for(hundred: Cifar100) -> None:
    with pytest.raises(UserError, match=r"the 200 rows of 'train' of uoft-cs/cifar100 are not there"):
        replace(hundred, rows="published").split("forget")


def test_the_test_rows_are_parted_by_the_split_seed(hundred: Cifar100) -> None:
    def trained(scenario: Cifar100) -> list[int]:
        return [int(row.rpartition("-")[2]) for row in scenario.without(frozenset()).ids]

    assert torch.tensor([row % 100 for row in trained(hundred)]).bincount().tolist() == [2] * 100
    assert trained(hundred) != trained(replace(hundred, split_seed=1))
    assert len(trained(replace(hundred, request="superclass_fish", train_per_class=None, test_per_class=None))) == 800


# -------------------------------------------------------------------------------------------------------------------- copies


@pytest.fixture
def copied(tmp_path: Path, folders: dict[str, Any]) -> Cifar10:
    """Rows 1, 11 and 21 are one picture of class 1; row 30 (class 0) is that of row 2; test rows 4 and 5 are those of row 3 and test 6."""
    train, test = pictures(200, seed=1), pictures(1000, seed=2)
    train[[11, 21]] = train[1]
    train[30] = train[2]
    test[4], test[5] = train[3], test[6]
    for part, images in (("train", train), ("test", test)):
        write_parquet(tmp_path / f"{part}-00000-of-00001.parquet", [png(image) for image in images], labels10(len(images)))
    return Cifar10(request="random50", data_dir=str(tmp_path), **SMALL)


@pytest.mark.parametrize("name", ["class_automobile", "random50", "mislabelled", "neighbours", "memorised_high"])
@pytest.mark.parametrize("split_seed", range(3))
def test_copies_are_forgotten_together_and_never_on_two_sides(copied: Cifar10, name: str, split_seed: int) -> None:
    scenario = replace(copied, request=name, split_seed=split_seed)
    train = [int(row.rpartition("-")[2]) for row in scenario.without(frozenset()).ids]
    assert sorted({*range(200)} - {*train}) == [30]  # the copy with another label is gone
    parts = {split: scenario.split(split) for split in scenario.splits}
    everywhere = [row for data in parts.values() for row in data.ids]
    assert "cifar10-test-00004" not in everywhere
    assert not {"cifar10-test-00006"} & set(everywhere)  # of equal unseen pictures the first is kept
    for split in ("forget", "retain"):
        held = {"cifar10-train-00001", "cifar10-train-00011", "cifar10-train-00021"} & set(parts[split].ids)
        assert len(held) in (0, 3)
        clusters = dict(zip(parts[split].ids, parts[split].clusters, strict=True))
        assert {clusters[row] for row in held} <= {"cifar10-train-00001"}
    alone = [contents(data) for data in parts.values()]
    assert sum(map(len, alone)) == len(set.union(*alone))
    oracle = contents(scenario.without(scenario.plan("oracle").rows))
    assert not oracle & contents(parts["forget"])
    judged = scenario.judged()
    assert len({"cifar10-train-00001", "cifar10-train-00011", "cifar10-train-00021"} & judged) in (0, 3)


def test_copies_carry_wrong_labels_together(copied: Cifar10) -> None:
    found = 0
    for split_seed in range(5):
        data = replace(copied, request="mislabelled", split_seed=split_seed, forget_size=90).split("forget")
        labels = dict(zip(data.ids, data.labels.tolist(), strict=True))
        if "cifar10-train-00001" in labels:
            found += 1
            assert 1 not in {labels[f"cifar10-train-000{row}"] for row in ("01", "11", "21")}
    assert found


# ------------------------------------------------------------------------------------------------------------ nets, training


def test_recipes_are_the_nets_own_but_for_what_is_given(folders: dict[str, Any]) -> None:
    fields = {"request": "random10", "data_dir": folders["cifar10"]["data_dir"]}
    published = Cifar10(**fields, net="resnet18").recipe
    assert (published.epochs, published.lr, published.batch_size, published.weight_decay) == (182, 0.1, 256, 5e-4)
    given = Cifar10(**fields, net="resnet18", epochs=3, lr=0.02, precision="bf16").recipe
    assert given == replace(published, epochs=3, lr=0.02, precision="bf16")


def test_whitening_sees_the_pictures_of_the_plan_alone(ten: Cifar10) -> None:
    scenario = replace(ten, net="resnet9", width=4, depth=None, request="class_dog")
    plans = [scenario.plan("original"), scenario.plan("oracle")]
    original, oracle = scenario.train(plans, [1, 1])
    for plan, model in zip(plans, (original, oracle), strict=True):
        assert isinstance(model, ResNet9)
        expected = ResNet9(classes=10, channels=3, width=4)
        expected.whiten(scenario.without(plan.rows).images)
        names = [name for name, value in expected.state_dict().items() if name.startswith("whit") and value.dim() == 4]
        assert names
        for name in names:
            torch.testing.assert_close(model.state_dict()[name], expected.state_dict()[name])
            fresh = scenario.train_view(plan).build(1).state_dict()[name]
            torch.testing.assert_close(fresh, expected.state_dict()[name])
    assert any(not torch.equal(original.state_dict()[name], oracle.state_dict()[name]) for name in names)


def test_residual_nets_are_stacked_on_a_gpu_and_go_one_by_one_on_a_cpu(ten: Cifar10) -> None:
    assert (ten.batched, ten.trained_together) == (False, 1)
    token = hardware.set(Hardware(device="cuda"))
    try:
        asked = {name: replace(ten, net=name) for name in ("resnet9", "resnet18", "resnet20", "resnet56", "vit")}
        assert [scenario.batched for scenario in asked.values()] == [True] * 4 + [False]
        assert [scenario.trained_together for scenario in asked.values()] == [8] * 4 + [1]
    finally:
        hardware.reset(token)


def test_stacked_models_are_those_of_the_loop(ten: Cifar10, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of plans with different pictures, each with its own whitening layer."""
    scenario = replace(ten, net="resnet9", width=4, depth=None, request="class_dog")
    plans = [scenario.plan("original"), scenario.plan("oracle"), scenario.plan("oracle")]
    loop = scenario.train(plans, [1, 1, 2])
    sizes: list[int] = []

    class Counted(Stack):
        def __init__(self, models: list[Any], recipe: Any) -> None:
            super().__init__(models, recipe)
            sizes.append(len(models))

    monkeypatch.setattr(Cifar10, "batched", True)
    monkeypatch.setattr(ensembles, "Stack", Counted)
    stacked = scenario.train(plans, [1, 1, 2])
    assert sum(sizes) == 3
    assert max(sizes) > 1
    images = scenario.split("test").images
    for one, other in zip(loop, stacked, strict=True):
        torch.testing.assert_close(other.eval()(images), one.eval()(images), rtol=0, atol=1e-3)
    assert all((one(images) - loop[0](images)).abs().max() > 1e-2 for one in loop[1:])


def test_mistakes_are_named(ten: Cifar10, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"request": "class_dragon"}, r"Cifar10 has no request 'class_dragon'; it has: class_airplane"),
        (
            {"request": "random10", "forget_size": 150},
            r"'random10' forgets 150 pictures and its validation request as many .*; cifar10 has 200",
        ),
        ({"train_per_class": 21}, r"train_per_class is 21; of label 0 .* has 20 to give"),
        ({"test_per_class": 101}, r"test_per_class is 101; of label 0 .* has 100 to give"),
        ({"test_per_class": 2}, r"class 'airplane' has 2 different unseen pictures; at least 3 are needed"),
        ({"data_dir": str(tmp_path)}, r"neither train-\*.parquet nor .*; it has: nothing"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            replace(ten, **fields).split("forget")
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        ten.split("nowhere")
    with pytest.raises(UserError, match="net"):
        registry.make("scenarios", "cifar10", {"request": "random10", "net": "alexnet"})


def test_real_requests_share_no_picture(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test part of CIFAR-100 holds two pictures twice, each with two labels."""
    if not (data_root / "cifar100").is_dir() or not (data_root / "cifar10").is_dir():
        pytest.skip(f"no CIFAR below {data_root}")
    monkeypatch.undo()
    fields: dict[str, Any] = {"data_dir": str(data_root / "cifar100"), "cifar10_dir": str(data_root / "cifar10"), "rows": "test"}
    for request, classes in (("superclass_aquatic_mammals", 20), ("class_otter", 100)):
        scenario = Cifar100(request=request, **fields)
        parts = [contents(scenario.split(split)) for split in scenario.splits]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert scenario.classes == classes
        assert np.isclose(float(scenario.split("retain").images.mean()), 0, atol=0.1)
