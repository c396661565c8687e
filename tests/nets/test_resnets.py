"""The residual nets: shortcuts by hand, and the published weights' names and shapes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unlearnbench.api import UserError
from unlearnbench.nets import load_published_resnet20, net
from unlearnbench.nets.resnets import BasicBlock, Padded


def test_a_padded_shortcut_keeps_every_second_pixel_between_empty_channels() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = Padded(2, 4, 2)(x)
    expected = torch.zeros(1, 4, 2, 2)
    expected[0, 1] = torch.tensor([[0.0, 2.0], [8.0, 10.0]])
    expected[0, 2] = torch.tensor([[16.0, 18.0], [24.0, 26.0]])
    assert torch.equal(out, expected)


def test_a_block_whose_branch_is_silent_is_its_shortcut() -> None:
    block = BasicBlock(2, 4, 2, "padded").eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(block(x), Padded(2, 4, 2)(x).relu())
    same = BasicBlock(2, 2, 1, "projected").eval()
    torch.nn.init.zeros_(same.bn2.weight)
    assert torch.equal(same(x), x.relu())
    assert sum(p.numel() for p in same.parameters()) == 2 * (2 * 2 * 9 + 4)


def published(path: Path, change: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A file in the published form, with weights of our own net, written to `path`."""
    ours = net("resnet20", classes=10, channels=3, size=32, seed=3).state_dict()
    theirs = {}
    for name, tensor in ours.items():
        if name.endswith("num_batches_tracked"):
            continue
        first, *rest = name.split(".")
        if first == "blocks":
            stage, number = divmod(int(rest[0]), 3)
            theirs["module." + ".".join([f"layer{stage + 1}", str(number), *rest[1:]])] = tensor
        else:
            theirs["module." + ".".join([{"conv": "conv1", "bn": "bn1", "head": "linear"}[first], *rest])] = tensor
    torch.save({"state_dict": theirs | (change or {}), "best_prec1": 0.0}, path)
    return ours


def test_published_resnet20_is_read_under_our_names(tmp_path: Path) -> None:
    ours = published(tmp_path / "weights.th")
    loaded = load_published_resnet20(tmp_path / "weights.th")
    assert not loaded.training
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.th"
    with pytest.raises(UserError, match="there is no file"):
        load_published_resnet20(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="is no checkpoint with a state_dict"):
        load_published_resnet20(path)
    published(path, {"module.linear.weight": torch.zeros(100, 64)})
    with pytest.raises(UserError, match="not those of a ResNet-20"):
        load_published_resnet20(path)
    published(path, {"module.layer4.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="not those of a ResNet-20"):
        load_published_resnet20(path)


def test_the_published_file_fits(data_root: Path) -> None:
    path = data_root / "models" / "resnet20-12fca82f.th"
    model = load_published_resnet20(path)
    theirs = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    ours = model.state_dict()
    for name, published_name in (
        ("blocks.3.conv1.weight", "layer2.0.conv1.weight"),
        ("blocks.8.bn2.running_var", "layer3.2.bn2.running_var"),
        ("head.bias", "linear.bias"),
    ):
        assert torch.equal(ours[name], theirs[f"module.{published_name}"])
