"""Ensembles: the batched models against separate trainings by `fit`, and what cannot be batched."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from unlearnbench.ensembles import train_ensemble
from unlearnbench.nets import net, prepare
from unlearnbench.progress import progress
from unlearnbench.scenarios.digits_nets import convnet, mlp
from unlearnbench.training import DivergedError, Hardware, Recipe, batches, fit, hardware, step_count

N, ROWS = 5, 40
IMAGES = torch.randn(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(0, 10, (ROWS,), generator=torch.Generator().manual_seed(1))
SEEDS = [3, 1, 4, 1, 5]
# 21, 22, 30, 30 and 23 rows: in batches of 8 three or four steps an epoch, with last batches of 5, 6, 6, 6 and 7 rows.
MEMBERS = torch.stack([torch.randperm(ROWS, generator=torch.Generator().manual_seed(i)) < k for i, k in enumerate((21, 22, 30, 30, 23))])
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.01, weight_decay=0.05, schedule="linear", warmup=0.2, clip=0.7)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A worker's thread policy; more threads only slow these sizes down."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def build_mlp(seed: int) -> nn.Module:
    return mlp(7, seed).double()


def build_convnet(seed: int) -> nn.Module:
    return convnet(3, seed).double()


def build_vector_net(seed: int) -> nn.Module:
    """Batch-norm over vectors, dropout, a bias-free layer, grouped and strided convolutions with bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2, padding="same"), nn.SiLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, momentum=0.3), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(6, 10),
        ).double()  # fmt: skip


def build_resnet9(seed: int) -> nn.Module:
    """A maximum over positions, multiplied features, a head without bias, a first layer that is not trained."""
    return net("resnet9", classes=10, channels=1, size=8, width=4, seed=seed).double()


def build_resnet20(seed: int) -> nn.Module:
    """Shortcuts that drop pixels and add channels of zeros."""
    return net("resnet20", classes=10, channels=1, size=8, width=4, depth=1, seed=seed).double()


def build_resnet18(seed: int) -> nn.Module:
    """Shortcuts with a convolution and batch-norm of their own."""
    return net("resnet18", classes=10, channels=1, size=8, width=4, depth=1, seed=seed).double()


def separately(build: Any, recipe: Recipe, targets: Tensor = LABELS) -> list[nn.Module]:
    models = []
    for i, seed in enumerate(SEEDS):
        model, rows = build(seed), torch.arange(ROWS)[MEMBERS[i]]
        labels = targets.expand(N, ROWS)[i]

        def loss(m: nn.Module, b: Tensor, labels: Tensor = labels) -> Tensor:
            return cross_entropy(m(IMAGES[b]), labels[b])

        def steps(epoch: int, rows: Tensor = rows, seed: int = seed) -> list[Tensor]:
            return [rows[b] for b in batches(len(rows), recipe.batch_size, seed=seed, epoch=epoch)]

        fit(model, loss, steps, recipe, seed=seed, total_steps=step_count(len(rows), recipe))
        models.append(model)
    return models


def together(build: Any, recipe: Recipe, targets: Tensor = LABELS, **options: Any) -> list[nn.Module]:
    settings: dict[str, Any] = {"batched": True, "chunk": 3} | options
    return train_ensemble(build, IMAGES, targets, MEMBERS, SEEDS, recipe, **settings)


def assert_equal(a: list[nn.Module], b: list[nn.Module]) -> None:
    for one, other in zip(a, b, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("build", [build_mlp, build_convnet])
@pytest.mark.parametrize(
    "change",
    [{}, {"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9, "clip": None}, {"batch_norm": "frozen"}],
)
def test_batched_equals_separate_trainings(build: Any, change: dict[str, Any]) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, **change})
    expected = separately(build, recipe)
    assert_equal(expected, together(build, recipe))
    fresh = [build(seed) for seed in SEEDS]
    assert all((a.head.weight - b.head.weight).abs().max() > 1e-3 for a, b in zip(fresh, expected, strict=True))


def test_batched_equals_separate_trainings_for_the_other_layers() -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "dropout": False})
    assert_equal(separately(build_vector_net, recipe), together(build_vector_net, recipe))


@pytest.mark.parametrize("build", [build_resnet9, build_resnet20, build_resnet18])
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batched_equals_separate_trainings_of_residual_nets(build: Any, batch_norm: Any) -> None:
    recipe = Recipe(epochs=2, batch_size=8, lr=0.02, optimizer="sgd", momentum=0.9, weight_decay=0.01, clip=5.0, batch_norm=batch_norm)
    expected = separately(build, recipe)
    assert_equal(expected, together(build, recipe))
    fresh = [build(seed) for seed in SEEDS]
    assert all((a.head.weight - b.head.weight).abs().max() > 1e-3 for a, b in zip(fresh, expected, strict=True))
    if build is build_resnet9:
        assert all(torch.equal(a.whitening.weight, b.whitening.weight) for a, b in zip(fresh, expected, strict=True))


@pytest.mark.parametrize("batched", [True, False])
def test_models_are_prepared_from_their_own_rows(batched: bool) -> None:
    models: list[Any] = together(build_resnet9, RECIPE, prepare=prepare, batched=batched)
    for model, mask, seed in zip(models, MEMBERS, SEEDS, strict=True):
        alone: Any = build_resnet9(seed)
        prepare(alone, IMAGES[mask])
        assert torch.equal(model.whitening.weight, alone.whitening.weight)
    # Batched, each model went on from its own fixed layer and not from the first one's.
    assert_equal(together(build_resnet9, RECIPE, prepare=prepare, batched=not batched), models)


@pytest.mark.parametrize("by", ["recipe", "hardware"])
def test_bf16_is_that_of_fit(by: str) -> None:
    """In bf16 batched and separate trainings agree roughly; neither is the one in full precision."""

    def variances(batched: bool, precision: Any) -> Tensor:
        recipe = Recipe(epochs=1, batch_size=8, lr=0.01, precision=precision if by == "recipe" else "fp32")
        token = hardware.set(Hardware(dtype=precision if by == "hardware" else "fp32"))
        try:
            models: list[Any] = train_ensemble(
                lambda seed: convnet(3, seed), IMAGES.float(), LABELS, MEMBERS, SEEDS, recipe, batched=batched, chunk=3
            )
        finally:
            hardware.reset(token)
        return torch.stack([model.body[1].running_var for model in models])

    low, full = variances(True, "bf16"), variances(True, "fp32")
    torch.testing.assert_close(low, variances(False, "bf16"), rtol=0.02, atol=0)
    assert (low - full).abs().max() > 1e-5


def test_the_loop_is_fit_itself() -> None:
    for a, b in zip(separately(build_convnet, RECIPE), together(build_convnet, RECIPE, batched=False), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_each_model_can_have_its_own_labels() -> None:
    targets = torch.stack([(LABELS + i) % 10 for i in range(N)])
    expected = separately(build_mlp, RECIPE, targets)
    assert_equal(expected, together(build_mlp, RECIPE, targets))
    assert_equal(expected, together(build_mlp, RECIPE, targets, batched=False))


def test_a_model_learns_from_its_own_rows_alone() -> None:
    """Rows outside `members` may be anything; the same seed on other rows gives another model."""
    spoiled = IMAGES.clone()
    spoiled[~MEMBERS[1]] = torch.nan
    model = train_ensemble(build_mlp, spoiled, LABELS, MEMBERS[1:2], [1], RECIPE, batched=True, chunk=1)
    models = together(build_mlp, RECIPE)
    assert_equal(model, [models[1]])
    assert not torch.allclose(models[1].head.weight, models[3].head.weight)


def test_the_chunk_changes_rounding_only() -> None:
    assert_equal(together(build_convnet, RECIPE, chunk=1), together(build_convnet, RECIPE, chunk=99))


def test_plain_vectors_are_inputs_too() -> None:
    def build(seed: int) -> nn.Module:
        return nn.Sequential(*copy.deepcopy(list(mlp(7, seed).double().body)[1:]), nn.Linear(7, 10).double())

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Flatten(), build(0))
        settings: dict[str, Any] = {"batched": True, "chunk": 2}
        flat = train_ensemble(lambda _: copy.deepcopy(model[1]), IMAGES.flatten(1), LABELS, MEMBERS, SEEDS, RECIPE, **settings)
        images = train_ensemble(lambda _: copy.deepcopy(model), IMAGES, LABELS, MEMBERS, SEEDS, RECIPE, **settings)
    assert_equal(flat, [m[1] for m in images])


@pytest.mark.parametrize("batched", [True, False])
def test_divergence_is_said(batched: bool) -> None:
    spoiled = IMAGES.clone()
    spoiled[MEMBERS[4]] = torch.inf
    with pytest.raises(DivergedError, match="digits"):
        train_ensemble(build_mlp, spoiled, LABELS, MEMBERS, SEEDS, RECIPE, batched=batched, chunk=5, label="digits")


def test_modes_and_progress() -> None:
    heard: list[tuple[str, int, int]] = []
    token = progress.set(lambda *told: heard.append(told))
    try:
        models = together(lambda seed: build_convnet(seed).eval(), RECIPE, label="oracles")
    finally:
        progress.reset(token)
    # Three models of three batches (21 to 24 rows), two of four, three epochs.
    assert heard[-1] == ("oracles", 51, 51)
    assert not any(m.training for model in models for m in model.modules())


class Does(nn.Module):
    """What a function makes of an image and its convolution, in front of a head."""

    def __init__(self, what: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.what, self.layer, self.pool = what, nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.head = nn.Flatten(), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.flatten(self.pool(self.what(x, self.layer(x)))))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


class Two(nn.Identity):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x


@pytest.mark.parametrize(
    "what",
    [
        lambda x, y: pad(y * 2.0, (1, 0, 0, 2, 1, 0), value=0.5)[:, :, 1::2, :4] + 1,
        lambda x, y: torch.add(torch.mul(0.5, y), y + y),
    ],
)
def test_what_a_forward_does_between_its_layers_can_be_stacked(what: Any) -> None:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Does(what)
            model.head = nn.LazyLinear(10)
            model.double()(IMAGES[:2])
        return model

    assert_equal(separately(build, RECIPE), together(build, RECIPE))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Does(lambda x, y: x * y), r"Does does %mul.* cannot be stacked"),
        (Does(lambda x, y: y - 1.0), "%sub.* cannot be stacked"),
        (Does(lambda x, y: torch.add(y, y, alpha=2)), "%add.* cannot be stacked"),
        (Does(lambda x, y: x + y), "sum of different shapes cannot be stacked"),
        (Does(lambda x, y: y[:, ::2]), "%getitem.* cannot be stacked"),
        (Does(lambda x, y: y[:, :2, ::2]), "%getitem.* cannot be stacked"),
        (Does(lambda x, y: y[1:, :, ::2]), "%getitem.* cannot be stacked"),
        (Does(lambda x, y: y[:, :, 0]), "%getitem.* cannot be stacked"),
        (Does(lambda x, y: y[0]), "%getitem.* cannot be stacked"),
        (Does(lambda x, y: pad(y, (1, 1, 1, 1), "reflect")), "%pad.* cannot be stacked"),
        (Does(lambda x, y: pad(y, (0, 0, 0, 0, 0, 0, 1, 0))), "%pad.* cannot be stacked"),
        (Does(lambda x, y: y if y.sum() > 0 else x), "cannot be traced, so cannot be stacked"),
        (Two(), "more than one argument"),
        (net("vit", classes=10, channels=1, size=8, width=8, depth=1, seed=0), "VisionTransformer cannot be traced, so cannot be stacked"),
        (Tied(), "shares parameters"),
        (nn.Sequential(nn.Dropout(0.5)), "Dropout.* cannot be stacked"),
        (nn.Sequential(nn.BatchNorm1d(64, affine=False)), "BatchNorm1d.* cannot be stacked"),
        (nn.Sequential(nn.Softmax(1)), "Softmax.* cannot be stacked"),
    ],
)
def test_what_cannot_be_stacked_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        together(lambda _: model.double(), RECIPE)


def test_a_batch_of_one_row_is_refused_by_batch_norm() -> None:
    members = torch.zeros(2, ROWS, dtype=torch.bool)
    members[0, :9] = members[1, :10] = True
    recipe = Recipe(**{**RECIPE.__dict__, "dropout": False})
    with pytest.raises(ValueError, match="more than one value"):
        train_ensemble(build_vector_net, IMAGES, LABELS, members, [0, 1], recipe, batched=True, chunk=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"recipe": Recipe(epochs=1, batch_size=8, lr=0.1, accumulate=2)}, "accumulate is 2"),
        ({"members": MEMBERS[:2]}, r"members is torch.bool \[2, 40\]"),
        ({"members": MEMBERS.long()}, "members is torch.int64"),
        ({"targets": LABELS[:3]}, r"targets is \[3\]"),
        ({"members": MEMBERS & False}, "model 0 has no rows"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    settings = {"targets": LABELS, "members": MEMBERS, "recipe": RECIPE, "chunk": 2} | options
    with pytest.raises(ValueError, match=message):
        train_ensemble(build_mlp, IMAGES, seeds=SEEDS, batched=True, **settings)
