"""Membership attacks on token statistics, texts and gradient norms: what they read, and the order they give."""

import zlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from unlearnbench.api import InferenceAttack, Member, Need, NotMeasurable, Threat
from unlearnbench.attacks.gradient_norm import GradientNorm
from unlearnbench.attacks.min_k import MinK, MinKPlusPlus
from unlearnbench.attacks.reference_attack import ReferenceAttack
from unlearnbench.attacks.zlib_attack import ZlibAttack
from unlearnbench.evidence import Evidence, Tokens

SCENARIO = SimpleNamespace(modality="language", task="generate")
PLAIN, MOMENTS = Need(what="tokens", split="forget"), Need(what="tokens", split="forget", moments=True)
TEXT, NORM = Need(what="text", split="forget"), Need(what="gradient_norm", split="forget")


def evidence(
    rows: Sequence[Sequence[float]], *, ids: Sequence[str] = (), texts: Sequence[str] = (), norms: Sequence[float] = ()
) -> Evidence:
    """Log-probabilities of each row, the end token's last; every mean is -1 and every variance 4."""
    flat = np.concatenate(rows).astype(np.float32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    stats = Tokens(flat, np.zeros(len(flat), bool), offsets, np.full(len(flat), -1, np.float32), np.full(len(flat), 4, np.float32))
    names = {"forget": tuple(ids) or tuple(map(str, range(len(rows))))}
    return Evidence(
        ids=names,
        clusters=names,
        token_stats={MOMENTS: (stats,)},
        references={TEXT: tuple(texts)},
        arrays={NORM: np.array(norms, np.float32)[:, None]},
    )


def test_min_k_takes_the_lowest_tokens_of_the_text() -> None:
    seen = evidence([[-1.0, -5.0, -3.0, -9.0], [-0.5, -0.5, -0.5, -0.5]])  # the last is the end token
    assert MinK(share=0.7).score(seen, "forget", ()).tolist() == [-4.0, -0.5]
    assert MinK().score(seen, "forget", ()).tolist() == [-5.0, -0.5]
    assert MinKPlusPlus(share=0.7).score(seen, "forget", ()).tolist() == [-1.5, 0.25]
    assert MinK().wants("forget", SCENARIO) == (PLAIN,)
    assert MinKPlusPlus().wants("forget", SCENARIO) == (MOMENTS,)


@pytest.mark.parametrize("attack", [MinK, MinKPlusPlus])
def test_a_share_must_be_one(attack: type[MinK]) -> None:
    for bad in (0.0, 1.1):
        with pytest.raises(ValidationError):
            TypeAdapter(attack).validate_python({"share": bad})
    assert attack().share == 0.4


def test_zlib_weighs_the_loss_by_the_text() -> None:
    texts = ("ha " * 60, "Nothing here is said more than once, or so it seems to the quick brown fox.")
    seen = evidence([[-1.0, -3.0], [-2.5, -1.5]], texts=texts)
    expected = [-2.0 / len(zlib.compress(text.encode())) for text in texts]
    np.testing.assert_allclose(ZlibAttack().score(seen, "forget", ()), expected, rtol=1e-12)
    assert expected[0] < expected[1]
    assert ZlibAttack().wants("forget", SCENARIO) == (PLAIN, TEXT)


def test_gradient_norm_is_small_for_what_was_fitted() -> None:
    # By torch on a linear model: the row it fits has the smaller gradient, and so the higher score.
    layer = nn.Linear(2, 1, bias=True)
    norms = []
    with torch.no_grad():
        layer.weight[:], layer.bias[:] = torch.tensor([[1.0, 0.0]]), 0.0
    for x, y in (([1.0, 1.0], 1.1), ([1.0, 1.0], 3.0)):
        layer.zero_grad()
        (layer(torch.tensor(x)) - y).pow(2).sum().backward()
        norms.append(np.mean([float(p.grad.norm()) for p in layer.parameters() if p.grad is not None]))
    scores = GradientNorm().score(evidence([[-1.0]] * 2, norms=norms), "forget", ())
    np.testing.assert_allclose(scores, np.negative(norms), rtol=1e-6)
    assert scores[0] > scores[1]
    assert scores.dtype == np.float64
    assert GradientNorm().wants("forget", SCENARIO) == (NORM,)


def member(seen: Evidence) -> Member:
    return Member(role="oracle", seed=0, evidence=seen, load=nn.Module)


def test_reference_compares_with_the_mean_of_the_bank_row_by_row() -> None:
    model = evidence([[-1.0, -3.0], [-4.0]], ids=("a", "b"))
    bank = [member(evidence([[-5.0], [-3.0, -7.0]], ids=("b", "a"))), member(evidence([[-4.0], [-6.0], [-9.0]], ids=("b", "a", "c")))]
    scores = ReferenceAttack().score(model, "forget", bank)
    np.testing.assert_allclose(scores, [(5.0 + 6.0) / 2 - 2.0, (5.0 + 4.0) / 2 - 4.0], rtol=1e-12)
    assert ReferenceAttack().wants("forget", SCENARIO) == (PLAIN,)
    with pytest.raises(NotMeasurable, match="no reference model"):
        ReferenceAttack().score(model, "forget", ())
    with pytest.raises(ValueError, match="lacks 1 rows of 'forget', the first is 'b'"):
        ReferenceAttack().score(model, "forget", [member(evidence([[-1.0]], ids=("a",)))])


@pytest.mark.parametrize(
    ("attack", "level", "banked"),
    [
        (MinK, Threat.T2, 0),
        (MinKPlusPlus, Threat.T2, 0),
        (ZlibAttack, Threat.T2, 0),
        (GradientNorm, Threat.T3, 0),
        (ReferenceAttack, Threat.T2, 2),
    ],
)
def test_facts(attack: type[InferenceAttack], level: Threat, banked: int) -> None:
    banks = attack().banks
    assert (attack().level, sum(bank.n for bank in banks)) == (level, banked)
    assert {bank.role for bank in banks} <= {"oracle"}
    assert attack().supports(SimpleNamespace(modality="vision", task="classify")) == "works on language, not on vision"
