"""The stored checkpoints give the stored logits, in our net and through our rows."""

from __future__ import annotations

import torch
from vision_conformance import Vision

from unlearnbench.scenarios.images import image_loss


def test_the_checkpoints_give_the_stored_logits(vision: Vision) -> None:
    stored = [name for name in vision.arrays if name.startswith("logits/")]
    assert stored
    for key in stored:
        _, model, split = key.split("/")
        with torch.no_grad():
            ours = vision.net(model)(vision.images(split))
        torch.testing.assert_close(ours, torch.from_numpy(vision.arrays[key]), atol=2e-5, rtol=0)


def test_the_accuracies_are_the_stored_ones(vision: Vision) -> None:
    for model, accuracies in vision.numbers("inputs")["accuracy"].items():
        net = vision.net(model)
        for split, accuracy in accuracies.items():
            with torch.no_grad():
                right = net(vision.images(split)).argmax(1) == vision.labels(split)
            assert right.double().mean().item() == accuracy


def test_forget_and_retain_are_the_rows_of_the_index(vision: Vision) -> None:
    for split in ("forget", "retain"):
        index = torch.from_numpy(vision.arrays[f"{split}_index"])
        assert torch.equal(vision.images("train")[index], vision.images(split))
        assert torch.equal(vision.labels("train")[index], vision.labels(split))
    view = vision.view()
    batch = view.forget.train.batch(range(len(view.forget.train)))
    with torch.no_grad():
        logits = torch.from_numpy(vision.arrays["logits/original/forget"])
        expected = torch.nn.functional.cross_entropy(logits, vision.labels("forget"), reduction="none")
        torch.testing.assert_close(image_loss(vision.net(), batch), expected, atol=5e-5, rtol=0)
