"""Labelled pictures as they lie in files: decoded when they are asked for, so that a subset of a large set is quick.

Knows encoded and raw pictures; no data set. Every mistake is one `UserError` naming the place.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlearnbench.api import UserError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The rows of one part of a data set.

    Attributes:
        place: where they come from, for errors.
        labels: by column, class numbers int64 ``[n]``.
        encoded: pictures, each the content of an image file or its path, or uint8 ``[n, channels, height, width]``.
        size: height and width that each picture must have.
    """

    place: str
    labels: Mapping[str, Tensor]
    encoded: Sequence[bytes] | Sequence[Path] | Bytes
    size: tuple[int, int]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.encoded)

    def pixels(self, index: Sequence[int]) -> Tensor:
        """These rows' pictures, uint8 ``[len(index), 3, height, width]``, 0 to 255.

        Raises:
            UserError: a picture is damaged or of another size.
        """
        if isinstance(self.encoded, np.ndarray):
            return torch.from_numpy(self.encoded[list(index)])
        out = np.empty((len(index), 3, *self.size), dtype=np.uint8)
        for place, row in enumerate(index):
            picture = self.encoded[row]
            if isinstance(picture, Path):
                out[place] = decoded(picture.read_bytes(), str(picture), self.size)
            else:
                out[place] = decoded(picture, f"{self.place}, row {row + 1}", self.size)
        return torch.from_numpy(out)


def decoded(content: bytes, place: str, size: tuple[int, int]) -> Bytes:
    """The picture in the content of an image file, RGB uint8 ``[3, height, width]``.

    Raises:
        UserError: it is no picture, or of another size than `size` (height, width).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            found = (image.height, image.width)
            if found != size:
                raise UserError(f"{place} is a picture of {found[0]}x{found[1]} pixels; it must have {size[0]}x{size[1]}")
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place} is no picture that can be read: {reason:.120}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
