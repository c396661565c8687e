"""What each metric says of itself, and TOFU's published aggregate."""

import pytest

from unlearnbench.api import Metric, SplitMetric, Threat
from unlearnbench.metrics.accuracy import Accuracy, TrueProbability
from unlearnbench.metrics.memorization import ExactMemorization, ExtractionStrength
from unlearnbench.metrics.tofu import Probability, Rouge, TruthRatioTrueBetter
from unlearnbench.metrics.unbiased_cka import UnbiasedCKA
from unlearnbench.metrics.utility import ModelUtility
from unlearnbench.stats import harmonic_mean

SHARE = (0.0, 1.0)


@pytest.mark.parametrize(
    ("metric", "level", "bounds", "curve", "fields"),
    [
        (Accuracy, Threat.T1, SHARE, True, {"split": "forget"}),
        (TrueProbability, Threat.T2, SHARE, True, {"split": "forget"}),
        (ExactMemorization, Threat.T2, SHARE, True, {"split": "forget", "question": "question"}),
        (ExtractionStrength, Threat.T2, SHARE, True, {"split": "forget", "question": "question"}),
        (Probability, Threat.T2, SHARE, True, {"split": "forget", "question": "question", "answer": "answer"}),
        (Rouge, Threat.T1, SHARE, False, {"split": "forget", "question": "question", "variant": "recall"}),
        (TruthRatioTrueBetter, Threat.T2, SHARE, True, {"split": "forget", "question": "question", "answer": "paraphrased_answer"}),
        (ModelUtility, Threat.T2, SHARE, False, {"splits": ("retain", "general")}),
        (UnbiasedCKA, Threat.T0, (-1.0, 1.0), True, {"split": "forget", "layer": -1, "reference": "oracle"}),
    ],
)
def test_facts(metric: type[Metric], level: Threat, bounds: tuple[float, float], curve: bool, fields: dict[str, object]) -> None:
    made = metric()
    assert (made.level, made.bounds, made.curve, made.hyperparameters()) == (level, bounds, curve, fields)
    assert (made.banks, made.paper.startswith("arXiv") or metric in (Accuracy, TrueProbability)) == ((), True)


@pytest.mark.parametrize(
    ("metric", "on_forget"),
    [
        (Accuracy, True),
        (TrueProbability, True),
        (ExtractionStrength, True),
        (Probability, True),
        (Rouge, True),
        (ExactMemorization, False),
        (TruthRatioTrueBetter, False),
    ],
)
def test_what_is_fit_for_the_headline(metric: type[SplitMetric], on_forget: bool) -> None:
    assert (metric().headline, metric().side, metric().direction) == (on_forget, "forget" if on_forget else "diagnostic", "higher")
    assert (metric(split="retain").headline, metric(split="holdout").headline) == (False, False)


def test_harmonic_mean_is_that_of_the_first_tofu_code() -> None:
    # What its aggregate printed for one set of logs: nine parts and their model utility.
    rouge = (0.7062093169327132, 0.6776659267122288, 0.6663367549083442)
    probability = (0.280728164534059, 0.2798160274525639, 0.6669095317476196)
    truth_ratio = (0.4165345794497943, 0.5319012982595631, 0.6101652876504436)
    assert harmonic_mean([*rouge, *probability, *truth_ratio]) == pytest.approx(0.4749964156217181, rel=1e-14)
