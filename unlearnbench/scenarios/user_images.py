"""A user's own pictures: a folder of class folders to train on, and optionally one of pictures that no model is trained on.

Laid out as ``train/<class>/*.png`` and ``test/<class>/*.png``; PNG, JPEG, BMP and WebP, all square and of one size. Knows folders;
nets and training are `picture_scenario`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from unlearnbench.api import Request, UserError
from unlearnbench.nets.catalogue import SMALLEST
from unlearnbench.scenarios.image_pool import Drawn
from unlearnbench.scenarios.image_rows import ImageRows
from unlearnbench.scenarios.picture_pool import Layout, PicturePool, draw_pool
from unlearnbench.scenarios.picture_requests import draw_group, instance_requests
from unlearnbench.scenarios.picture_scenario import PictureScenario

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
"""Fixed, so that nothing is taken from pictures that are to be forgotten."""


class Images(PictureScenario):
    """Pictures of one's own, in class folders. Without a test folder one in five pictures of each class is kept for testing."""

    data_dir: str
    """The folder that holds `train` and, if there is one, `test`."""
    target: str | None = None
    """The class that the request "class" forgets; None is the first by name."""

    @classmethod
    def requests(cls) -> tuple[Request, ...]:
        """See `Scenario.requests`."""
        named = Request(name="class", kind="class", description="all pictures of the class that `target` names")
        following = Request(name="validation_class", kind="class", description="all pictures of the class that comes next by name")
        return (named, following, *instance_requests())

    def pool(self) -> PicturePool:
        """See `VisionScenario.pool`."""
        found = _folders(self.data_dir)
        layout = Layout(
            data_set="images",
            names=found.classes,
            column="label",
            fine="label",
            train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
            mean=MEAN,
            std=STD,
        )
        return draw_pool(found.train, found.test, layout, self.split_seed)

    def _target(self) -> int:
        """The number of the class that the request names.

        Raises:
            UserError: there is no such class.
        """
        names = _folders(self.data_dir).classes
        if self.target is not None and self.target not in names:
            raise UserError(f"target is {self.target!r}, which is no class of {self.data_dir}; it has: {', '.join(names)}")
        number = 0 if self.target is None else names.index(self.target)
        return number if self.asked().name == "class" else (number + 1) % len(names)

    def _of_class(self, number: int) -> Drawn:
        pool = self.pool()
        others = set(pool.unseen) - set(pool.of_class(pool.unseen, number))
        return draw_group(pool, pool.of_class(pool.train, number), others, f"class{number}")

    def own_class(self) -> Drawn:
        """See `PictureScenario.own_class`."""
        return self._of_class(self._target())

    def other_class(self, index: int) -> Drawn:
        """See `PictureScenario.other_class`."""
        own = self._target()
        others = [number for number in range(self.classes) if number != own]
        return self._of_class(self.pool().rng(f"shadow/{own}/{index}").choice(others))

    def next_class(self) -> str:
        """See `PictureScenario.next_class`."""
        return "validation_class"


@dataclass(frozen=True)
class Folders:
    """What a folder holds."""

    classes: tuple[str, ...]
    train: ImageRows
    test: ImageRows | None


@cache
def _folders(data_dir: str) -> Folders:
    """The rows of a folder.

    Raises:
        UserError: it has not the form that is wanted, or its first picture is too small or no square.
    """
    root = Path(data_dir).expanduser()
    train = _classes(root / "train")
    if len(train) < 2:
        raise UserError(f"{root / 'train'} has {len(train)} class folders with pictures; at least 2 are needed")
    test = _classes(root / "test") if (root / "test").is_dir() else {}
    if unknown := sorted(set(test) - set(train)):
        raise UserError(f"{root / 'test' / unknown[0]} shows a class that is not trained on; classes: {', '.join(train)}")
    size = _size(next(iter(train.values()))[0])
    names = tuple(train)
    sides = []
    for name, files in (("train", train), ("test", test)):
        paths = tuple(path for found in files.values() for path in found)
        labels = torch.tensor([names.index(label) for label, found in files.items() for _ in found])
        sides.append(ImageRows(str(root / name), {"label": labels}, paths, size))
    return Folders(names, sides[0], sides[1] if test else None)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Class -> its pictures, both by name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pictures lie in train/<class> and, if there are some, test/<class>")
    found = {}
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in child.iterdir() if path.suffix.lower() in ENDINGS)
        if files:
            found[child.name] = files
    return found


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            size = (image.height, image.width)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is no picture that can be read: {error}") from error
    if size[0] != size[1] or size[0] < SMALLEST:
        raise UserError(f"{path} is a picture of {size[0]}x{size[1]} pixels; pictures are squares of {SMALLEST} pixels or more")
    return size
