"""Fluency of generated answers: variety of their words, or a classifier's word that they are clean.

By default the n-gram entropy of Meng, Bau, Andonian, Belinkov (2022, arXiv 2202.05262), as RWKU uses it (Jin et al. 2024, arXiv
2406.10890); `unlearnbench.answers` names the deviations of the formula. With a classifier, open-unlearning's form (Dorna et al. 2025,
arXiv 2506.12618): the probability of the class that stands for clean text. Deviations: the classifier is given (open-unlearning names
one on the hub), and texts are cut at its own greatest length, where open-unlearning cuts at 32 or 512 tokens.

A diagnostic, not utility: entropy rises with length, so that a refusal, which is short, has little, and random words have most. The
file knows texts, and no model that is under test.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unlearnbench.answers import ngram_entropy
from unlearnbench.api import Audit, Need, Scenario, SplitMetric, Threat, UserError
from unlearnbench.evidence import Evidence

BATCH = 32


def class_probability(folder: Path, texts: Sequence[str], clean_class: int) -> NDArray[np.float64]:
    """Probability that a classifier gives one class, for each text [n].

    Args:
        folder: a text classifier with its tokenizer, as `save_pretrained` writes both.
        texts: what to classify.
        clean_class: number of the class.

    Raises:
        UserError: the folder is not there, or the classifier has no such class.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"classifier is {str(folder)!r}, which is no folder; allowed: a text classifier as save_pretrained writes it")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if clean_class >= model.config.num_labels:
        raise UserError(f"clean_class is {clean_class}; the classifier in {folder} has classes 0 to {model.config.num_labels - 1}")
    found: list[NDArray[np.float64]] = []  # a model from a folder is in eval mode
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            inputs = tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True)
            found.append(model(**inputs).logits.double().softmax(-1)[:, clean_class].numpy())
    return np.concatenate(found)


class Fluency(SplitMetric):
    """Mean over rows of the n-gram entropy of the generated answer in bits, or of a classifier's probability that it is clean."""

    paper = "arXiv 2202.05262"
    modality = ("language",)
    level = Threat.T1
    bounds = (0.0, sys.float_info.max)
    curve = False
    tells_apart = False

    classifier: str | None = None
    """Folder of a text classifier; None for the entropy."""
    clean_class: Annotated[int, Field(ge=0)] = 0
    """The classifier's class that stands for clean text."""

    def _need(self) -> Need:
        return Need(what="generation", split=self.split)

    def wants(self, scenario: Scenario) -> tuple[Need, ...]:
        """Generated answers."""
        return (self._need(),)

    def measure(self, evidence: Evidence, audit: Audit) -> Mapping[str, float]:
        """The fluency of each row."""
        texts, _ = evidence.generations(self._need())
        if self.classifier is None:
            return evidence.by_row(self.split, [ngram_entropy(text) for text in texts])
        return evidence.by_row(self.split, class_probability(Path(self.classifier), texts, self.clean_class))
