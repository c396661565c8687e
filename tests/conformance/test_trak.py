"""Our attribution against traker's: projected gradients, features and scores, with its quirks put together here.

It projects with +-1 entries and divides by the root of the number of parameters, divides each inverse by the mean of its absolute values,
and averages features' products and errors (1 - p) over the checkpoints apart.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from vision_conformance import Vision

from unlearnbench.attribution import trak

RELATIVE = 1e-5


def margin(logits: Tensor, label: Tensor) -> Tensor:
    return trak.margin(logits, label)[None]


def close(ours: Tensor, stored: Tensor) -> None:
    """To 1e-5 of the largest entry."""
    assert ours.shape == stored.shape
    assert float((ours.double() - stored.double()).abs().max()) <= RELATIVE * float(stored.abs().max())


class Checkpoint:
    """One checkpoint's stored results and ours; `number` is the order in which the checkpoints were given."""

    def __init__(self, vision: Vision, number: int) -> None:
        self.entry = {name: torch.from_numpy(value) for name, value in vision.entry("trak").items()}
        self.number = number
        self.model = self._found(vision)
        matrix = self.stored("projection").float()

        def project(gradients: Tensor) -> Tensor:
            return gradients @ matrix.to(gradients.dtype) / len(matrix) ** 0.5

        self.train = trak.projected_gradients(self.model, margin, vision.images("train"), vision.labels("train"), project)[:, 0]
        count = self.stored("projected_targets").shape[0]
        images, labels = vision.images("test")[:count], vision.labels("test")[:count]
        self.targets = trak.projected_gradients(self.model, margin, images, labels, project)
        with torch.no_grad():
            self.errors = trak.errors(self.model(vision.images("train")), vision.labels("train"))

    def stored(self, name: str) -> Tensor:
        return self.entry[f"{name}_{self.number}"]

    def _found(self, vision: Vision) -> nn.Module:
        """The checkpoint whose errors are the stored ones: the folder does not name it."""
        stored, size = self.stored("out_to_loss")[:, 0], self.stored("projection").shape[0]
        distances = {}
        for name in vision.names():
            net = vision.net(name)
            if sum(p.numel() for p in net.parameters()) == size:
                with torch.no_grad():
                    ours = trak.errors(net(vision.images("train")), vision.labels("train"))
                distances[name] = float((ours - stored).abs().max())
        return vision.net(min(distances, key=distances.__getitem__))

    @property
    def scale(self) -> Tensor:
        """What their inverse was divided by: the mean of the absolute values of (G'G)^-1."""
        wide = self.train.double()
        return torch.linalg.inv(wide.T @ wide).abs().mean()


def checkpoints(vision: Vision) -> list[Checkpoint]:
    numbers = sorted(int(found[1]) for name in vision.entry("trak") if (found := re.fullmatch(r"projection_(\d+)", name)))
    assert numbers
    return [Checkpoint(vision, number) for number in numbers]


def test_gradients_features_and_errors_of_each_checkpoint(vision: Vision) -> None:
    for checkpoint in checkpoints(vision):
        close(checkpoint.train, checkpoint.stored("projected_train"))
        close(checkpoint.targets[:, 0], checkpoint.stored("projected_targets"))
        torch.testing.assert_close(checkpoint.errors, checkpoint.stored("out_to_loss")[:, 0], atol=2e-5, rtol=0)
        theirs = (trak.features(checkpoint.train.double(), ridge=0.0) / checkpoint.scale).float()
        close(theirs, checkpoint.stored("features"))
        assert abs(float(checkpoint.scale) - 1) > 0.1  # the division is no small matter


def test_scores_over_checkpoints(vision: Vision) -> None:
    found = checkpoints(vision)
    products = [torch.einsum("nd,md->nm", trak.features(c.train.double(), ridge=0.0) / c.scale, c.targets[:, 0].double()) for c in found]
    errors = torch.stack([c.errors for c in found]).mean(0).double()
    scores = vision.entry("trak")
    close((torch.stack(products).mean(0) * errors[:, None]).float(), torch.from_numpy(scores["scores_two_checkpoints"]))
    # One checkpoint alone has no average, so that our effects give it but for the scale.
    one = trak.effects(trak.features(found[0].train.double(), ridge=0.0), found[0].errors.double(), found[0].targets.double())[..., 0]
    close((one / found[0].scale).float(), torch.from_numpy(scores["scores_checkpoint0"]))


def test_the_stored_factor_is_the_root_of_the_number_of_parameters(vision: Vision) -> None:
    size = vision.entry("trak")["projection_0"].shape[0]
    assert vision.numbers("trak")["normalize_factor"] == pytest.approx(size**0.5, rel=1e-6)
