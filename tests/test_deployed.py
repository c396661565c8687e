"""Models saved and loaded again: inserted modules within each other, tied weights, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import Inserted, insert, inserted, model_hash


class Shift(Inserted):
    """Adds a learned number to the output."""

    def __init__(self, inner: nn.Module, *, start: float = 0.0) -> None:
        super().__init__(inner)
        self.start = start
        self.by = nn.Parameter(torch.tensor(start))

    def config(self) -> dict[str, Any]:
        return {"start": self.start}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) + self.by  # type: ignore[no-any-return]


class Scale(Inserted):
    """Multiplies the output by a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.register_buffer("factor", torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) * self.factor  # type: ignore[no-any-return]


def build() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
    return nn.Sequential(block, nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 2))


def trained() -> nn.Module:
    """A model whose every weight and buffer is its own."""
    model, numbers = build(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=numbers) + 0.5)
    return model.eval()


def wrap(model: nn.Module, path: str, cls: type[Inserted], number: float, **config: Any) -> None:
    module = cls(model.get_submodule(path), **config)
    insert(model, path, module)
    with torch.no_grad():
        (module.by if isinstance(module, Shift) else module.factor).fill_(number)


def same(saved: nn.Module, folder: Path, *inserts: type[Inserted]) -> nn.Module:
    """The loaded model, checked to be the saved one in structure, weights and what it computes."""
    loaded = load_model(folder, build, inserts)
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert not any(module.training for module in loaded.modules())
    assert model_hash(loaded) == model_hash(saved)
    assert [(path, type(module), module.config()) for path, module in inserted(loaded)] == [
        (path, type(module), module.config()) for path, module in inserted(saved)
    ]
    assert torch.equal(loaded(inputs), saved(inputs))
    return loaded


def test_a_plain_model_comes_back_with_its_buffers(tmp_path: Path) -> None:
    model = trained()
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deployed.json", "model.safetensors"]
    same(model, tmp_path)
    before = model_hash(model)
    for parameter in load_model(tmp_path, build).parameters():
        parameter.data.zero_()
    assert model_hash(model) == before


def test_modules_around_and_within_each_other_come_back(tmp_path: Path) -> None:
    model = trained()
    wrap(model, "0.0", Shift, 2.0, start=0.5)  # inside a block
    wrap(model, "0.0", Scale, 3.0)  # around that
    wrap(model, "0", Scale, 0.5)  # around the block
    wrap(model, "0", Shift, -1.0)  # and around that
    wrap(model, "1.0", Scale, 4.0)
    wrap(model, "1.0", Scale, 5.0)  # the same class twice, as in a sequence of requests
    plain = trained()
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    block = 0.5 * plain[0][2](plain[0][1](3 * (plain[0][0](inputs) + 2))) - 1  # type: ignore[index, operator]
    assert torch.allclose(model(inputs), plain[2](20 * plain[1](block)))  # type: ignore[index, operator]
    save_model(model, tmp_path)
    loaded = same(model, tmp_path, Shift, Scale)
    (tmp_path / "again").mkdir()
    save_model(loaded, tmp_path / "again")
    for name in ("deployed.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_model_that_came_with_modules_comes_back_with_them_and_what_was_added(tmp_path: Path) -> None:
    def published() -> nn.Module:
        model = build()
        wrap(model, "0.0", Shift, 9.0, start=0.25)
        return model

    model = trained()
    wrap(model, "0.0", Shift, 2.0, start=0.5)
    wrap(model, "1.0", Scale, 4.0)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, published, (Scale,))
    assert model_hash(loaded) == model_hash(model)
    assert [(path, module.config()) for path, module in inserted(loaded)] == [(path, module.config()) for path, module in inserted(model)]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 500, bias=False))
        model[1].weight = model[0].weight
        return model

    model = tied()
    save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.1 * 500 * 64 * 4
    loaded = load_model(tmp_path, tied)
    assert loaded[1].weight is loaded[0].weight  # type: ignore[index]
    assert torch.equal(loaded[1].weight, model[1].weight)  # type: ignore[index, arg-type]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Shift wraps the whole model"):
        save_model(Shift(trained()), tmp_path)
    model = trained()
    wrap(model, "2", Shift, 1.0)
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match=r"needs the inserted module 'Shift'; the method knows none"):
        load_model(tmp_path, build)
    with pytest.raises(ValueError, match=r"the method knows \['Scale'\]"):
        load_model(tmp_path, build, (Scale,))
    save_model(trained(), tmp_path)
    with pytest.raises(ValueError, match=r"do not fit: .*size mismatch for 2\.bias"):
        load_model(tmp_path, lambda: nn.Sequential(*build()[:2], nn.Linear(5, 3)))  # type: ignore[index]
    with pytest.raises(ValueError, match=r"do not fit: .*Unexpected key.*2\.bias"):
        load_model(tmp_path, lambda: build()[:2])  # type: ignore[index]
    with pytest.raises(ValueError, match=r"do not fit: .*Missing key.*3\.weight"):
        load_model(tmp_path, lambda: nn.Sequential(*build().children(), nn.Linear(2, 2)))
