"""The ViT against a second writing of it, and what its parts promise."""

import math

import torch
from torch import Tensor

from unlearnbench.nets import VisionTransformer, vit
from unlearnbench.nets.vit import Attention, Block


def tiny(stem: int = 0) -> VisionTransformer:
    return vit(classes=3, channels=2, size=8, patch=4, width=8, depth=2, heads=2, stem=stem, seed=0).eval()


def attended(layer: Attention, x: Tensor) -> Tensor:
    """Attention of one row [tokens, width], head by head."""
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    size = x.shape[1] // layer.heads
    heads = []
    for part in (slice(h * size, (h + 1) * size) for h in range(layer.heads)):
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        heads.append(scores.softmax(1) @ value[:, part])
    mixed: Tensor = layer.out(torch.cat(heads, 1))
    return mixed


def test_forward_is_that_of_the_paper() -> None:
    model = tiny()
    image = torch.randn(2, 8, 8)
    rows = []
    for i in range(2):
        for j in range(2):
            patch = image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            rows.append(model.patches.weight.flatten(1) @ patch.flatten())
    assert model.patches.bias is not None
    x = torch.cat([model.class_token[0], torch.stack(rows) + model.patches.bias]) + model.positions[0]
    for block in model.encoder.blocks:  # type: ignore[union-attr]
        assert isinstance(block, Block)
        assert isinstance(block.attention, Attention)
        x = x + attended(block.attention, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(model.head(model.norm(x[0]))[None], model(image[None]))


def test_the_parts_make_the_whole_and_any_number_of_tokens_goes_through() -> None:
    model, images = tiny(), torch.randn(3, 2, 8, 8)
    tokens = model.embed(images)
    assert tokens.shape == (3, 5, 8)
    assert torch.equal(model.head(model.pool(model.encoder(tokens))), model(images))
    longer = model.encoder(torch.cat([tokens, torch.randn(3, 4, 8)], 1))
    assert longer.shape == (3, 9, 8)
    assert not torch.allclose(longer[:, 0], model.encoder(tokens)[:, 0])


def test_a_stem_stands_before_the_patches() -> None:
    model, images = tiny(stem=5), torch.randn(3, 2, 8, 8)
    kernel, bias = (parameter.detach() for parameter in model.stem.parameters())
    seen = torch.nn.functional.conv2d(images, kernel, bias, padding=1).clamp(min=0)
    patches = model.patches(seen).flatten(2).mT
    torch.testing.assert_close(model.embed(images)[:, 1:], patches + model.positions[:, 1:])
