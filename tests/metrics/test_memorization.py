"""Extraction strength and exact memorisation on answers small enough to count."""

from types import SimpleNamespace

import numpy as np
import pytest

from unlearnbench.api import Audit, Need
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.metrics.memorization import ExactMemorization, ExtractionStrength

AUDIT = Audit(originals=(), oracles=())
NEED = Need(what="tokens", split="forget")


def evidence(*rows: str, need: Need = NEED) -> Evidence:
    """Rows of hits (1) and misses (0), the end token's last."""
    hits = np.array([mark == "1" for row in rows for mark in row])
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    ids = tuple(f"row{i}" for i in range(len(rows)))
    stats = {need: (Tokens(np.zeros(len(hits), np.float32), hits, offsets),)}
    return Evidence(ids={"forget": ids}, clusters={"forget": ids}, token_stats=stats)


@pytest.mark.parametrize("end", ["0", "1"])
def test_end_token_counts_for_nothing(end: str) -> None:
    seen = evidence("011" + end, "110" + end, "1" + end)
    assert ExtractionStrength().measure(seen, AUDIT) == {"row0": pytest.approx(2 / 3), "row1": 0.0, "row2": 1.0}
    assert ExactMemorization().measure(seen, AUDIT) == {"row0": pytest.approx(2 / 3), "row1": pytest.approx(2 / 3), "row2": 1.0}


@pytest.mark.parametrize("metric", [ExtractionStrength, ExactMemorization])
def test_an_answer_without_a_token_is_an_error(metric: type[ExtractionStrength]) -> None:
    with pytest.raises(ValueError, match="no token besides the end token"):
        metric().measure(evidence("11", "1"), AUDIT)


@pytest.mark.parametrize("metric", [ExtractionStrength, ExactMemorization])
def test_reads_the_question_asked_for(metric: type[ExtractionStrength]) -> None:
    other = Need(what="tokens", split="forget", question="paraphrased_question")
    asked = metric(question="paraphrased_question")
    assert asked.wants(SimpleNamespace(modality="language", task="generate")) == (other,)
    assert asked.measure(evidence("011", need=other), AUDIT) == {"row0": 0.5}


def test_facts() -> None:
    assert (ExtractionStrength().side, ExtractionStrength().headline) == ("forget", True)
    assert ExtractionStrength(split="retain").side == "utility"
    assert (ExactMemorization().side, ExactMemorization().headline) == ("diagnostic", False)
    vision = SimpleNamespace(modality="vision", task="classify", splits=("forget",))
    assert ExtractionStrength().supports(vision) == "works on language, not on vision"
