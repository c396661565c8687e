"""Scores of language models as open-unlearning, TOFU's and MUSE's own code give them, composed from our formulas.

Their quirks are put together here: signs turned round, 1e-10 in denominators, a floor of 1/T under extraction strength. Per-token
numbers that they cast to float32 agree to 5e-7, all others to rounding.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import hmean, ks_2samp
from torch import nn

from unlearnbench import stats
from unlearnbench.answers import answer_probability, closer_to_1, log_truth_ratio, option_probability, prob_mean, true_better
from unlearnbench.api import Audit, Member, Need
from unlearnbench.attacks.min_k import MinK, MinKPlusPlus
from unlearnbench.attacks.reference_attack import ReferenceAttack
from unlearnbench.attacks.zlib_attack import ZlibAttack
from unlearnbench.evidence import Evidence, Tokens
from unlearnbench.membership import forget_auc, loss_scores, text_of, tokens_of
from unlearnbench.metrics.forget_quality import ForgetDistance, ForgetQuality, ks_distance
from unlearnbench.metrics.memorization import ExactMemorization, ExtractionStrength
from unlearnbench.metrics.muse import privleak
from unlearnbench.metrics.tofu import Probability, Rouge
from unlearnbench.metrics.utility import ModelUtility
from unlearnbench.token_scores import min_k, zlib_score

Floats = NDArray[np.float64]

EPS = 1e-10
SINGLE = 5e-7
"""Agreement where the official code casts to float32."""
EXACT = 1e-12
AUDIT = Audit(originals=(), oracles=())


class Numbers(NamedTuple):
    arrays: dict[str, NDArray[Any]]
    scalars: dict[str, Any]

    @property
    def sets(self) -> list[str]:
        return [name.removeprefix("texts/") for name in self.scalars if name.startswith("texts/")]


@pytest.fixture(scope="module")
def numbers(conformance: Path) -> Numbers:
    folder = conformance / "methods-language"
    with np.load(folder / "metrics.npz") as arrays:
        return Numbers(dict(arrays), json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


# ----------------------------------------------------------------------------------------------- scores of tokens: open-unlearning


def token_statistics(logits: Floats, labels: NDArray[np.int64]) -> Tokens:
    """Statistics of the label tokens: logits at t predict the label at t + 1; -100 is not scored."""
    shifted = logits[:, :-1] - logits[:, :-1].max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    mean = (np.exp(logp) * logp).sum(-1)
    variance = (np.exp(logp) * logp**2).sum(-1) - mean**2
    targets = labels[:, 1:]
    scored = targets != -100
    row, place = np.nonzero(scored)
    token = targets[scored]
    return Tokens(
        logp[row, place, token],
        logp.argmax(-1)[scored] == token,
        np.concatenate([[0], np.cumsum(scored.sum(1))]),
        mean[scored],
        variance[scored],
    )


def evidence(numbers: Numbers, logits: str = "logits") -> Evidence:
    read = {name: token_statistics(numbers.arrays[f"lm/{name}/{logits}"], numbers.arrays[f"lm/{name}/labels"]) for name in numbers.sets}
    ids = {name: tuple(f"{name}/{i}" for i in range(len(stats.offsets) - 1)) for name, stats in read.items()}
    return Evidence(
        ids=ids,
        clusters=ids,
        token_stats={tokens_of(name, moments=True): (stats,) for name, stats in read.items()},
        references={text_of(name): tuple(numbers.scalars[f"texts/{name}"]) for name in numbers.sets},
    )


def reference_member(numbers: Numbers) -> Member:
    return Member(role="oracle", seed=0, evidence=evidence(numbers, "reference_logits"), load=nn.Module)


def agree(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_token_log_probabilities(numbers: Numbers) -> None:
    seen = evidence(numbers)
    for name in numbers.sets:
        (tokens,) = seen.tokens(tokens_of(name))
        expected, counts = numbers.arrays[f"metric/{name}/token_logprobs"], numbers.arrays[f"metric/{name}/n_scored_tokens"]
        for row, values, count in zip(tokens.rows(), expected, counts, strict=True):
            without_last = tokens.logprob[row][:-1]
            assert len(without_last) == count
            agree(without_last, values[:count], SINGLE)


def test_loss_and_probability(numbers: Numbers) -> None:
    seen = evidence(numbers)
    for name in numbers.sets:
        agree(-loss_scores(seen, name), numbers.arrays[f"metric/{name}/avg_loss"], EXACT)
        values = list(Probability(split=name).measure(seen, AUDIT).values())
        agree(values, numbers.arrays[f"metric/{name}/prob"], EXACT)
        agree(np.mean(values), numbers.scalars[f"{name}/probability_aggregate"], EXACT)


@pytest.mark.parametrize(("kind", "attack"), [("min_k", MinK), ("min_k_plus_plus", MinKPlusPlus)])
def test_lowest_tokens(numbers: Numbers, kind: str, attack: type[MinK]) -> None:
    seen = evidence(numbers)
    found = [re.fullmatch(rf"metric/(\w+)/{kind}_([\d.]+)", key) for key in numbers.arrays]
    keys = [match for match in found if match]
    assert {match[1] for match in keys} == set(numbers.sets)
    for match in keys:
        agree(-attack(share=float(match[2])).score(seen, match[1], ()), numbers.arrays[match[0]], SINGLE)


def test_zlib_and_reference(numbers: Numbers) -> None:
    seen = evidence(numbers)
    for name in numbers.sets:
        agree(-ZlibAttack().score(seen, name, ()), numbers.arrays[f"metric/{name}/zlib"], EXACT)
        agree(-ReferenceAttack().score(seen, name, [reference_member(numbers)]), numbers.arrays[f"metric/{name}/reference"], EXACT)


def test_memorisation(numbers: Numbers) -> None:
    seen = evidence(numbers)
    for name in numbers.sets:
        exact = list(ExactMemorization(split=name).measure(seen, AUDIT).values())
        agree(exact, numbers.arrays[f"metric/{name}/exact_memorization"], SINGLE)
        agree(np.mean(exact), numbers.scalars[f"{name}/exact_memorization_aggregate"], SINGLE)
        strength = list(ExtractionStrength(split=name).measure(seen, AUDIT).values())
        agree(strength, numbers.arrays[f"derived/{name}/extraction_strength_without_floor"], EXACT)
        floored = np.maximum(strength, 1 / numbers.arrays[f"metric/{name}/n_scored_tokens"])
        agree(floored, numbers.arrays[f"metric/{name}/extraction_strength"], EXACT)
        agree(np.mean(floored), numbers.scalars[f"{name}/extraction_strength_aggregate"], EXACT)


def test_areas(numbers: Numbers) -> None:
    seen, bank = evidence(numbers), [reference_member(numbers)]
    for kind, scores in {
        "loss": loss_scores,
        "min_k": lambda seen, split: MinK().score(seen, split, ()),
        "min_k_plus_plus": lambda seen, split: MinKPlusPlus().score(seen, split, ()),
        "zlib": lambda seen, split: ZlibAttack().score(seen, split, ()),
        "reference": lambda seen, split: ReferenceAttack().score(seen, split, bank),
    }.items():
        agree(forget_auc(seen, scores), numbers.scalars[f"auc/{kind}"], EXACT)


def test_privleak(numbers: Numbers) -> None:
    for entry in numbers.scalars["privleak"]:
        auc, oracle = entry["auc_unlearned"], entry["auc_retrained"]
        agree(privleak(auc, oracle), entry["muse_form_on_reversed_auc"], EXACT)
        agree(privleak(auc, oracle) * (1 - oracle) / (1 - oracle + EPS), entry["open_unlearning_privleak"], EXACT)
        agree(privleak(1 - auc, 1 - oracle) * oracle / (oracle + EPS), entry["rel_diff"], EXACT)


# ------------------------------------------------------------------------------------------------- truth ratio: open-unlearning


def test_truth_ratios(numbers: Numbers) -> None:
    correct, wrong = numbers.arrays["truth_ratio/correct_avg_loss"], numbers.arrays["truth_ratio/wrong_avg_loss"].T
    log_ratio = log_truth_ratio(correct, wrong)
    p = answer_probability(correct)
    theirs = np.exp(log_ratio) * p / (p + EPS)
    composed = {
        "closer_to_1_better": np.minimum(theirs, 1 / (theirs + EPS)),
        "true_better": true_better(np.log(theirs)),
        "prob_mean": p / (p / prob_mean(log_ratio) + EPS),
    }
    by_row = {"closer_to_1_better": theirs, "true_better": theirs, "prob_mean": composed["prob_mean"]}
    ours = {"closer_to_1_better": closer_to_1(log_ratio), "true_better": true_better(log_ratio), "prob_mean": prob_mean(log_ratio)}
    for name, values in composed.items():
        agree(by_row[name], numbers.arrays[f"truth_ratio/values/{name}"], EXACT)
        agree(values.mean(), numbers.scalars[f"truth_ratio/{name}"], EXACT)
        # Without the quirk the difference is of the order of 1e-10 over the right answer's probability.
        agree(ours[name], values, 3 * EPS / p.min() * max(1, np.exp(log_ratio).max()))
    share = option_probability(correct, wrong)
    total = p / share
    agree(p / (total + EPS), numbers.arrays["probability_w_options/values"], EXACT)
    agree((p / (total + EPS)).mean(), numbers.scalars["probability_w_options/aggregate"], EXACT)


def test_kolmogorov_smirnov(numbers: Numbers) -> None:
    found = log_truth_ratio(numbers.arrays["truth_ratio/correct_avg_loss"], numbers.arrays["truth_ratio/wrong_avg_loss"].T)
    reference = np.log(numbers.arrays["ks/reference_truth_ratio"])
    agree(ks_distance(found, reference), numbers.scalars["ks_statistic"], EXACT)
    np.testing.assert_allclose(ks_2samp(found, reference).pvalue, numbers.scalars["ks_test_pvalue"], rtol=1e-9)


def losses(values: Floats) -> Tokens:
    """Answers as one token each with these losses."""
    return Tokens(-np.asarray(values, dtype=np.float64), np.zeros(len(values), bool), np.arange(len(values) + 1))  # type: ignore[arg-type]


def truth_evidence(rows: tuple[str, ...], correct: Floats, wrong: Floats) -> Evidence:
    right, lies = (Need(what="tokens", split="forget", answer=kind) for kind in ("paraphrased_answer", "perturbed_answer"))
    stats = {right: (losses(correct),), lies: tuple(losses(one) for one in wrong)}
    return Evidence(ids={"forget": rows}, clusters={"forget": rows}, token_stats=stats)


def judged_by(oracle: Evidence) -> Audit:
    return Audit(originals=(), oracles=(Member(role="oracle", seed=0, evidence=oracle, load=nn.Module),))


def test_the_least_p_value(numbers: Numbers) -> None:
    floors = {int(key.removeprefix("ks_floor_n")): value for key, value in numbers.scalars.items() if key.startswith("ks_floor_n")}
    assert floors
    for n, floor in floors.items():
        rows, levels = tuple(map(str, range(n))), np.linspace(1, 2, n)
        model, oracle = truth_evidence(rows, levels, levels[None]), truth_evidence(rows, levels + 5, levels[None])
        np.testing.assert_allclose(ForgetQuality().measure(model, judged_by(oracle)), floor, rtol=1e-9)
        assert float(ForgetDistance().measure(model, judged_by(oracle))) == 1.0


# ------------------------------------------------------------------------------------------------------------- TOFU's first code

SPLITS = {
    "eval_real_author_wo_options.json": "Real Authors",
    "eval_real_world_wo_options.json": "Real World",
    "eval_log.json": "Retain",
    "eval_log_forget.json": "Forget",
}


def column(log: dict[str, Any], name: str) -> Floats:
    """Values of a column, rows in the order of its first."""
    values = np.array([log[name][row] for row in log["avg_gt_loss"]], dtype=np.float64)
    return values.T if values.ndim == 2 else values


def parts(log: dict[str, Any], split: str) -> dict[str, float]:
    """What the first code aggregates of one log; the wrong answers' losses are [answers, rows]."""
    own, wrong = column(log, "avg_gt_loss"), column(log, "average_perturb_loss")
    log_ratio = log_truth_ratio(column(log, "avg_paraphrased_loss"), wrong)
    return {
        "ROUGE": float(column(log, "rougeL_recall").mean()),
        "Prob.": float((answer_probability(own) if split in ("Retain", "Forget") else option_probability(own, wrong)).mean()),
        "Truth Ratio": float((closer_to_1(log_ratio) if split == "Forget" else true_better(log_ratio)).mean()),
    }


def test_model_utility_of_the_first_tofu_code(numbers: Numbers) -> None:
    expected = numbers.scalars["tofu_original/model_utility"]
    found = {
        f"{name} {SPLITS[file]}": value
        for file, log in numbers.scalars["tofu_original/logs"].items()
        for name, value in parts(log, SPLITS[file]).items()
    }
    for name, value in found.items():
        agree(value, expected[name], EXACT)
    assert {*found, "Model Utility"} == set(expected)
    agree(stats.harmonic_mean([value for name, value in found.items() if "Forget" not in name]), expected["Model Utility"], EXACT)


def test_forget_quality_of_the_first_tofu_code(numbers: Numbers) -> None:
    logs = [numbers.scalars[f"tofu_original/{name}"]["eval_log_forget.json"] for name in ("logs", "retain_log")]
    model, oracle = (
        truth_evidence(tuple(log["avg_gt_loss"]), column(log, "avg_paraphrased_loss"), column(log, "average_perturb_loss")) for log in logs
    )
    expected = numbers.scalars["tofu_original/forget_quality"]
    np.testing.assert_allclose(ForgetQuality().measure(model, judged_by(oracle)), expected["Forget Quality"], rtol=1e-9)
    agree(float(ForgetDistance().measure(model, judged_by(oracle))), expected["KS Test Forget"], EXACT)


# --------------------------------------------------------------------------------------------------------------------- MUSE


def muse_scores(row: dict[str, Any], names: list[str]) -> dict[str, float]:
    """MUSE's scores of one passage from our formulas: whole text, signs turned round, as many tokens as the ratio gives."""
    logprob = np.array(row["token_logprobs"])
    nll = -float(logprob.mean())
    known = {"PPL": nll, "PPL/lower": nll / row["lower_mean_nll"], "PPL/zlib": -zlib_score(nll, row["text"])}
    return {name: known[name] if name in known else -min_k(logprob, share_of(name)) for name in names}


def share_of(name: str) -> float:
    match = re.fullmatch(r"Min-([\d.]+)%", name)
    assert match, name
    return float(match[1]) / 100


def test_muse(numbers: Numbers) -> None:
    names = list(numbers.scalars["muse/scores_forget"][0])
    scores = {split: [muse_scores(row, names) for row in rows] for split, rows in numbers.scalars["muse/inputs"].items()}
    for found, expected in zip(scores["forget"], numbers.scalars["muse/scores_forget"], strict=True):
        agree([found[name] for name in names], [expected[name] for name in names], EXACT)
    areas = {}
    for key, expected in numbers.scalars["muse/auc"].items():
        one, other, name = key.split("_", 2)
        areas[key] = stats.auc([row[name] for row in scores[one]], [row[name] for row in scores[other]])
        agree(areas[key], expected, EXACT)
    (published,) = (key for key in numbers.scalars if key.startswith("muse/privleak_vs_auc_retrain_"))
    oracle = float(published.rpartition("_")[2])
    agree(privleak(1 - areas["forget_holdout_Min-40%"], 1 - oracle), numbers.scalars[published], EXACT)


def test_a_passage_too_short_for_muse_has_its_lowest_token(numbers: Numbers) -> None:
    (key,) = (key for key in numbers.scalars if re.fullmatch(r"muse/min_k_of_\d+_tokens", key))
    tokens = int(key.split("_")[3])
    for name, value in numbers.scalars[key].items():
        if name.startswith("Min-"):
            assert (value is None) == (int(tokens * share_of(name)) == 0)
            assert min_k(-np.arange(1.0, tokens + 1), share_of(name)) <= -tokens + (0 if value is None else tokens)


# ----------------------------------------------------------------------------------------------------- TOFU's published logs


@pytest.fixture(scope="module")
def logs(reference: Path) -> dict[str, dict[str, Any]]:
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((reference / "tofu_eval_logs").glob("*.json"))}
    assert found
    return found


SCORED = {"eval_log.json": "retain", "eval_real_author_wo_options.json": "real_authors", "eval_real_world_wo_options.json": "world_facts"}


def whole_evidence(log: dict[str, dict[str, Any]]) -> Evidence:
    """The evidence that these logs would come from: every answer one token with its mean loss."""
    ids, token_stats, texts, references = {}, {}, {}, {}
    for file, split in {**SCORED, "eval_log_forget.json": "forget"}.items():
        rows = log[file]
        ids[split] = tuple(rows["avg_gt_loss"])
        token_stats[Need(what="tokens", split=split)] = (losses(column(rows, "avg_gt_loss")),)
        token_stats[Need(what="tokens", split=split, answer="paraphrased_answer")] = (losses(column(rows, "avg_paraphrased_loss")),)
        wrong = column(rows, "average_perturb_loss")
        token_stats[Need(what="tokens", split=split, answer="perturbed_answer")] = tuple(losses(one) for one in wrong)
        said = [rows["generated_text"][row] for row in rows["avg_gt_loss"]]
        texts[Need(what="generation", split=split)] = tuple(text for _, text, _ in said)
        references[Need(what="generation", split=split)] = tuple(right for *_, right in said)
    return Evidence(ids=ids, clusters=ids, token_stats=token_stats, texts=texts, references=references)


def by_definition(log: dict[str, dict[str, Any]], without_paraphrase: str = "avg_paraphrased_loss") -> float:
    """TOFU's model utility, row by row; `without_paraphrase` is the truth ratio's right loss on real authors and world facts."""
    means = []
    for file, split in SCORED.items():
        rows, known = log[file], []
        for row, loss in rows["avg_gt_loss"].items():
            wrong = rows["average_perturb_loss"][row]
            probability = np.exp(-loss) if split == "retain" else np.exp(-loss) / (np.exp(-loss) + sum(np.exp(-one) for one in wrong))
            right = rows["avg_paraphrased_loss" if split == "retain" else without_paraphrase][row]
            ratio = np.exp(right - sum(wrong) / len(wrong))
            known.append((rows["rougeL_recall"][row], probability, max(0.0, 1 - ratio)))
        means += np.mean(known, axis=0).tolist()
    return float(hmean(means))


def test_model_utility_of_published_logs(logs: dict[str, dict[str, Any]]) -> None:
    for log in logs.values():
        known = [value for file in SCORED for value in parts(log[file], SPLITS[file]).values()]
        agree(stats.harmonic_mean(known), by_definition(log), EXACT)
        # Real authors and world facts have no paraphrase: there their log holds the answer's loss twice, from two passes that differ by
        # the rounding of bf16. Our metric reads one pass.
        found = ModelUtility(splits=tuple(SCORED.values())).measure(whole_evidence(log), AUDIT)
        agree(found, by_definition(log, "avg_gt_loss"), EXACT)
        agree(found, by_definition(log), 1e-3)


def test_rouge_of_published_texts(logs: dict[str, dict[str, Any]]) -> None:
    for log in logs.values():
        seen = whole_evidence(log)
        for file, split in SCORED.items():
            found = Rouge(split=split).measure(seen, AUDIT)
            agree([found[row] for row in log[file]["rougeL_recall"]], list(log[file]["rougeL_recall"].values()), EXACT)


def test_forget_quality_of_published_logs(logs: dict[str, dict[str, Any]]) -> None:
    found = {name: whole_evidence(log) for name, log in logs.items()}
    ratios = {name: list(log["eval_log_forget.json"]["truth_ratio"].values()) for name, log in logs.items()}
    for one in logs:
        for other in logs:
            expected = ks_2samp(ratios[one], ratios[other])
            np.testing.assert_allclose(ForgetQuality().measure(found[one], judged_by(found[other])), expected.pvalue, rtol=1e-6)
            agree(float(ForgetDistance().measure(found[one], judged_by(found[other]))), expected.statistic, EXACT)
