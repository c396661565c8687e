"""Fixed features, components and memorisation against numpy and models that were really trained without a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from unlearnbench.attribution.kernels import classification_errors, last_layer_kernel
from unlearnbench.scenarios import picture_features
from unlearnbench.scenarios.picture_features import RIDGE, component_scores, memorisation, nearest, random_features

CLASSES = 3


def made_up(n: int = 40, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64) + torch.eye(width, dtype=torch.float64)[labels] * 2
    return features - features.mean(0), labels


def test_features_are_of_one_picture_each_and_centred(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = random_features(images)
    assert whole.shape == (7, 512)
    torch.testing.assert_close(whole.mean(0), torch.zeros(512, dtype=torch.float64), atol=1e-7, rtol=0)
    monkeypatch.setattr(picture_features, "CHUNK", 3)
    torch.testing.assert_close(random_features(images), whole, atol=1e-6, rtol=0)
    brighter = random_features(images + 0.5)  # filters have no mean
    torch.testing.assert_close(brighter, whole, atol=1e-5, rtol=0)


def test_the_nearest_are_those_of_the_largest_cosine() -> None:
    features, _ = made_up()
    rows = list(range(5, 40))
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    expected = sorted(rows, key=lambda row: -float(unit[row] @ unit[7]))[:6]
    assert nearest(features, 7, rows, 6) == expected
    assert expected[0] == 7


def test_component_scores_are_those_of_kernel_principal_components() -> None:
    features, labels = made_up()
    fitted = list(range(30))
    scores = component_scores(features, labels, fitted, CLASSES)
    kernel = last_layer_kernel(features, classification_errors(torch.zeros(40, CLASSES, dtype=torch.float64), labels)).numpy()
    own = kernel[:30, :30]
    centre = np.eye(30) - 1 / 30
    values, vectors = np.linalg.eigh(centre @ own @ centre)
    for number in range(4):
        unit = vectors[:, -1 - number] / np.sqrt(values[-1 - number])
        projected = (kernel[:, :30] - own.mean(0)) @ (centre @ unit)
        projected -= projected[:30].mean()
        projected *= np.sign(projected[:30][np.abs(projected[:30]).argmax()])
        np.testing.assert_allclose(scores[number].numpy(), projected, atol=1e-6)


def test_memorisation_is_what_leaving_a_picture_out_changes() -> None:
    features, labels = made_up()
    found = memorisation(features, labels, CLASSES)
    wide = np.concatenate([features.numpy(), np.ones((40, 1))], axis=1)
    penalty = RIDGE * float((wide**2).sum(1).mean())
    targets = np.eye(CLASSES)[labels.numpy()]
    full = Ridge(alpha=penalty, fit_intercept=False).fit(wide, targets).predict(wide)
    for row in range(40):
        kept = np.arange(40) != row
        without = Ridge(alpha=penalty, fit_intercept=False).fit(wide[kept], targets[kept]).predict(wide[[row]])[0]
        label = int(labels[row])
        assert float(found[row]) == pytest.approx(full[row, label] - without[label], abs=1e-8)


def test_a_wrong_label_is_memorised() -> None:
    features, labels = made_up()
    wrong = labels.clone()
    wrong[4] = (labels[4] + 1) % CLASSES
    assert memorisation(features, wrong, CLASSES)[4] > 2 * memorisation(features, labels, CLASSES)[4]
