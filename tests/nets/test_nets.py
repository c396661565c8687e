"""Every net: shapes, seeds, features and head, depth and width, and the number of weights that papers give."""

from typing import get_args

import pytest
import torch
from torch import nn

from unlearnbench.api import UserError
from unlearnbench.layers import blocks, last_linear
from unlearnbench.nets import NetName, net, prepare, recipe_of

NAMES = get_args(NetName)
SMALL = {"resnet9": 4, "resnet18": 4, "resnet20": 4, "resnet56": 2, "vit": 8}


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 3)])
def test_logits_are_the_head_of_the_features(name: NetName, size: int, channels: int) -> None:
    model = net(name, classes=5, channels=channels, size=size, width=SMALL[name], seed=0).eval()
    images = torch.randn(3, channels, size, size)
    features = model.features(images)
    assert features.dim() == 2
    assert model(images).shape == (3, 5)
    assert torch.equal(model.head(features), model(images))
    assert last_linear(model) is model.head


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_seed_alone(name: NetName) -> None:
    def state(seed: int) -> torch.Tensor:
        made = net(name, classes=3, channels=1, size=8, width=SMALL[name], seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in made.parameters()])

    before = torch.get_rng_state()
    first = state(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(state(0), first)
    assert not torch.equal(state(1), first)


@pytest.mark.parametrize("name", NAMES)
def test_depth_and_width_are_settings(name: NetName) -> None:
    shape = {"classes": 3, "channels": 1, "size": 8, "seed": 0}
    shallow, deep = (net(name, **shape, width=SMALL[name], depth=depth) for depth in (1, 2))
    assert len(blocks(deep)) > len(blocks(shallow))
    assert weights(net(name, **shape, width=2 * SMALL[name], depth=1)) > 2 * weights(shallow)


def test_sizes_are_those_of_the_papers() -> None:
    shape = {"classes": 10, "channels": 3, "size": 32, "seed": 0}
    # He et al., table 6: 0.27 and 0.85 million; ResNet-18 with a 3x3 stem has 11.17 (known from its many uses).
    assert weights(net("resnet20", **shape)) == 269_722
    assert round(weights(net("resnet56", **shape)) / 1e6, 2) == 0.85
    assert weights(net("resnet18", **shape)) == 11_173_962


def test_only_the_whitening_layer_is_computed_from_images() -> None:
    images = torch.randn(20, 1, 8, 8)
    for name in NAMES:
        model = net(name, classes=3, channels=1, size=8, width=SMALL[name], seed=0)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        prepare(model, images)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == ({"whitening.weight"} if name == "resnet9" else set())


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_of_the_net(name: NetName) -> None:
    recipe = recipe_of(name)
    assert recipe.epochs >= 24
    assert recipe.optimizer == ("adamw" if name == "vit" else "sgd")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg"}, "net is 'vgg'; allowed: resnet9, resnet18, resnet20, resnet56, vit"),
        ({"name": "vit", "size": 4}, "size of vit is 4; allowed: 8 or more"),
        ({"name": "vit", "width": 30}, "the ViT's width is 30; allowed: a multiple of its heads, 4"),
        ({"name": "vit", "size": 33}, "the ViT's size is 33; allowed: a multiple of its patch, 4"),
        ({"name": "resnet9", "width": 0}, "width of resnet9 is 0; allowed: 1 or more"),
    ],
)
def test_what_is_not_allowed_says_what_is(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        net(**{"classes": 3, "channels": 3, "size": 32, "seed": 0} | settings)  # type: ignore[arg-type]
    assert str(raised.value) == message


def test_no_recipe_without_a_net() -> None:
    with pytest.raises(UserError, match="net is 'vgg'"):
        recipe_of("vgg")  # type: ignore[arg-type]
