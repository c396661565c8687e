"""A small vision transformer, trained from scratch.

Alexey Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, arXiv:2010.11929: patches become tokens, a class token goes first,
blocks normalise before attention and before the perceptron, and the head reads the class token. Departures: no dropout, one layer as
head instead of two, sizes for small images, and before the patches a 3x3 convolution, since a ViT without one wants far more images
(Tete Xiao et al., "Early convolutions help transformers see better", arXiv:2106.14881, where a deeper stem takes the place of the
patches; measured on handwritten digits: 0.98 of unseen images with it, 0.93 without).

Its forward pass is split in parts, so that tokens can be put in between: `embed`, the module `encoder`, `pool`, `head`. Attention has
its projections apart (`query`, `key`, `value`), so that adapters find them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from unlearnbench.api import UserError
from unlearnbench.nets.classifier import Classifier, seeded


class Attention(nn.Module):
    """Self-attention over tokens.

    Args:
        width: Of a token; a multiple of `heads`.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, tokens, width]`` to the same shape."""
        split = [layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        mixed: Tensor = self.out(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then a perceptron of four times the width, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, tokens, width]`` to the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class Encoder(nn.Module):
    """The blocks, one after another: the place where tokens can be put in front (`nets.prompts`)."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, tokens, width]`` to the same shape, for any number of tokens."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class VisionTransformer(Classifier):
    """See the module.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        size: Side of the images, a multiple of `patch`.
        patch: Side of a patch.
        width: Of a token, a multiple of `heads`.
        depth: Number of blocks.
        heads: Heads of each attention.
        stem: Channels of the convolution before the patches; 0 is the paper's net, without one.
    """

    def __init__(self, *, classes: int, channels: int, size: int, patch: int, width: int, depth: int, heads: int, stem: int) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, padding=1), nn.ReLU()) if stem else nn.Identity()
        self.patches = nn.Conv2d(stem or channels, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.encoder: nn.Module = Encoder(width, heads, depth)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def embed(self, images: Tensor) -> Tensor:
        """The class token and the patches, positions added, ``[B, 1 + patches, width]``."""
        patches = self.patches(self.stem(images)).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions

    def pool(self, tokens: Tensor) -> Tensor:
        """Features ``[B, width]`` of what the encoder gives ``[B, tokens, width]``: the class token, which stands first, normalised."""
        out: Tensor = self.norm(tokens[:, 0])
        return out

    def features(self, images: Tensor) -> Tensor:
        """See `Classifier.features`."""
        return self.pool(self.encoder(self.embed(images)))


def vit(
    *,
    classes: int,
    channels: int,
    size: int,
    patch: int | None = None,
    width: int = 192,
    depth: int = 6,
    heads: int = 4,
    stem: int = 16,
    seed: int,
) -> VisionTransformer:
    """A net whose weights are drawn from the seed alone.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        size: Side of the images.
        patch: Side of a patch; by default an eighth of the image's, at least 2.
        width: Of a token.
        depth: Number of blocks.
        heads: Heads of each attention.
        stem: Channels of the convolution before the patches; 0 is the paper's net, without one.
        seed: Of the initial weights.

    Raises:
        UserError: `width` is no multiple of `heads`, or `size` none of `patch`.
    """
    side = max(2, size // 8) if patch is None else patch
    for name, value, unit, parts in (("width", width, "heads", heads), ("size", size, "patch", side)):
        if value % parts:
            raise UserError(f"the ViT's {name} is {value}; allowed: a multiple of its {unit}, {parts}")

    def make() -> VisionTransformer:
        shape = {"size": size, "patch": side, "width": width, "depth": depth, "heads": heads, "stem": stem}
        return VisionTransformer(classes=classes, channels=channels, **shape)

    return seeded(make, seed)
