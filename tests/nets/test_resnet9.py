"""ResNet-9's whitening layer, against numpy, and what the net does with it."""

import numpy as np
import torch
from torch import Tensor

from unlearnbench.nets import ResNet9, net, prepare, whitening_directions


def correlated(n: int, seed: int) -> Tensor:
    """Smooth images off zero: neighbouring pixels and channels are alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1)
    return 0.7 + smooth + 0.5 * smooth.mean(1, keepdim=True)


def test_patches_along_the_directions_are_white() -> None:
    images = correlated(1500, 0)  # more than one chunk
    directions = whitening_directions(images, eps=0.0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))  # [n, 3, 9, 9, 2, 2]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    covariance = np.cov(patches @ directions.T, rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-8)
    variances = 1 / (directions**2).sum(1)
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(np.cov(patches, rowvar=False, bias=True))[::-1], rtol=1e-8)
    assert all(row[np.abs(row).argmax()] > 0 for row in directions)


def test_eps_keeps_empty_directions_small() -> None:
    flat = torch.ones(4, 1, 6, 6) * torch.arange(4.0)[:, None, None, None]  # patches vary along one direction alone
    directions = whitening_directions(flat, eps=0.25)
    lengths = directions.norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([(5.0 + 0.25) ** -0.5, 2.0, 2.0, 2.0], dtype=torch.float64))


def test_the_first_layer_is_the_directions_and_their_negatives_and_is_never_trained() -> None:
    images = correlated(50, 1)
    model = net("resnet9", classes=4, channels=3, size=12, width=4, seed=0)
    assert isinstance(model, ResNet9)
    prepare(model, images)
    expected = whitening_directions(images).float()
    torch.testing.assert_close(model.whitening.weight.flatten(1), torch.cat([expected, -expected]))
    assert not model.whitening.weight.requires_grad
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["whitening.weight"]


def test_the_layer_knows_the_given_images_alone() -> None:
    kept, gone = correlated(40, 2), 5 * correlated(40, 3)
    assert torch.equal(whitening_directions(kept), whitening_directions(kept.clone()))
    assert not torch.allclose(whitening_directions(kept), whitening_directions(torch.cat([kept, gone])), rtol=0.1)


def test_logits_are_a_fifth_of_the_heads_reading_of_the_maximum() -> None:
    model = net("resnet9", classes=4, channels=3, size=12, width=4, seed=0).eval()
    assert isinstance(model, ResNet9)
    images = correlated(5, 4)
    maps = model.blocks(model.whitening(images).relu())
    torch.testing.assert_close(model(images), 0.2 * maps.amax((2, 3)) @ model.head.weight.mT)
    assert model.head.bias is None
