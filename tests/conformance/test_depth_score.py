"""Depth scores by the authors' code, reproduced from our pure functions.

What that code does otherwise is put together here: the last layer is patched with states that have been through the final norm, and the
lens and CKA forms have 1e-8 in the ratio's denominator. Rows, layers, spans, thresholds and models are read from the files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from unlearnbench.layers import captured
from unlearnbench.mechanisms.patching import THRESHOLD, depth_score, patched
from unlearnbench.similarity import centred_gram, cka, hsic_0

CONSTANT = 1e-8
EXACT = 1e-12
SINGLE = 1e-6
"""Agreement of numbers that are divided by a constant there and not here, or made in float32."""
LOGPROB = 2e-5
"""Of log-probabilities that a model gives in float32."""


class Numbers(NamedTuple):
    arrays: dict[str, Any]
    scalars: dict[str, Any]


@pytest.fixture(scope="module")
def numbers(conformance: Path) -> Numbers:
    folder = conformance / "methods-language"
    with np.load(folder / "uds.npz") as arrays:
        return Numbers(dict(arrays), json.loads((folder / "uds.json").read_text(encoding="utf-8")))


def test_depth_scores_of_given_log_probabilities(numbers: Numbers) -> None:
    full, oracle, unlearned = (
        numbers.arrays[f"uds/{name}"] for name in ("full_logprob", "s1_logprob_retain_patched", "s2_logprob_unlearned_patched")
    )
    thresholds = [float(name.removeprefix("uds/average_threshold")) for name in numbers.scalars if name.startswith("uds/average_threshold")]
    assert len(thresholds) > 1
    undecided = 0
    for threshold in thresholds:
        found = depth_score(full, oracle, unlearned, threshold)
        np.testing.assert_allclose(found, numbers.arrays[f"uds/per_example_threshold{threshold:g}"], atol=EXACT)
        assert np.nanmean(found) == pytest.approx(numbers.scalars[f"uds/average_threshold{threshold:g}"], abs=EXACT)
        counted = [np.flatnonzero(full[i] - row > threshold).tolist() for i, row in enumerate(oracle)]
        assert counted == numbers.scalars[f"uds/ft_layers_threshold{threshold:g}"]
        undecided += int(np.isnan(found).sum())
    assert undecided


def test_logit_lens_takes_the_same_form(numbers: Numbers) -> None:
    """The full model's lens has a number for each layer: the drops are taken first."""
    full, oracle, unlearned = (numbers.arrays[f"logit_lens/{name}"].T for name in ("full", "retain", "unlearned"))
    found = depth_score(np.zeros(len(full)), oracle - full, unlearned - full, THRESHOLD)
    assert np.nanmean(found) == pytest.approx(numbers.scalars["logit_lens/score"], abs=SINGLE)
    assert int(np.isfinite(found).sum()) == numbers.scalars["logit_lens/n_examples_scored"]
    for layer, expected in numbers.scalars["logit_lens/per_layer"].items():
        one = slice(int(layer), int(layer) + 1)
        drops = (full - oracle)[:, one]
        assert drops.mean() == pytest.approx(expected["mean_d_ret"], abs=EXACT)  # over all examples, what counts or not
        erased = depth_score(np.zeros(len(full)), -drops, (unlearned - full)[:, one])
        assert int(np.isfinite(erased).sum()) == expected["n_ft_examples"]
        assert np.nanmean(erased) == pytest.approx(expected["mean_erasure"], abs=SINGLE)


def test_cka_takes_the_same_form(numbers: Numbers) -> None:
    full, oracle, unlearned = (numbers.arrays[f"cka/{name}"] for name in ("full", "retain", "unlearned"))

    def to_oracle(features: Any) -> Any:
        return np.array([cka(centred_gram(X), centred_gram(Y), hsic_0) for X, Y in zip(features, oracle, strict=True)])

    ours, before = to_oracle(unlearned), to_oracle(full)
    # Per layer 1 - CKA(full, oracle) is missing, of which CKA(unlearned, oracle) - CKA(full, oracle) has been made up.
    score = depth_score(np.zeros(1), (before - 1)[None], (before - ours)[None], threshold=0.0)
    assert score[0] == pytest.approx(numbers.scalars["cka/score"], abs=SINGLE)
    for layer, expected in numbers.scalars["cka/per_layer"].items():
        assert ours[int(layer)] == pytest.approx(expected["cka_unl_ret"], abs=SINGLE)
        assert 1 - before[int(layer)] == pytest.approx(expected["weight"], abs=SINGLE)


# ------------------------------------------------------------------------------------------------------------------- end to end


class Span(NamedTuple):
    """One example: what is fed, and the places whose states are exchanged and whose next token is scored."""

    ids: Tensor
    chosen: Tensor
    scored: slice
    targets: Tensor


def spans(numbers: Numbers) -> list[Span]:
    found = []
    for row in numbers.scalars["patching/inputs"]:
        context = row["context"]
        ids = torch.tensor([context["prompt_ids"] + context["ref_ids"]])
        chosen = torch.zeros(ids.shape, dtype=torch.bool)
        chosen[:, context["patch_start"] : context["patch_end"]] = True
        found.append(Span(ids, chosen, slice(context["eval_start"], context["eval_end"]), torch.tensor(context["eval_ref_ids"])))
    return found


def likelihood(model: Any, span: Span) -> float:
    """Mean log-probability of the scored tokens, in nats."""
    logp = model(input_ids=span.ids, use_cache=False).logits[0, span.scored].log_softmax(-1)
    return float(logp.gather(-1, span.targets[:, None]).mean())


def block_outputs(model: Any, span: Span, layers: int) -> list[Tensor]:
    with captured(model, range(layers)) as outputs:
        model(input_ids=span.ids, use_cache=False)
    return [outputs[layer] for layer in range(layers)]


def as_listed(model: Any, span: Span, layers: int) -> list[Tensor]:
    """What the library lists after each block: of the last one, what the final norm has made of it."""
    return list(model(input_ids=span.ids, use_cache=False, output_hidden_states=True).hidden_states[1 : layers + 1])


def after_patching(target: Any, span: Span, states: list[Tensor]) -> list[float]:
    found = []
    for layer, state in enumerate(states):
        with patched(target, layer, state, span.chosen):
            found.append(likelihood(target, span))
    return found


def test_patching_from_end_to_end(numbers: Numbers, conformance: Path) -> None:
    sources = [name.split("/")[1] for name in numbers.scalars if name.startswith("patching/") and name.endswith("/average")]
    models = {
        name: AutoModelForCausalLM.from_pretrained(conformance / "models" / name, dtype=torch.float32).eval()
        for name in {"full", "retain", *sources}
    }
    given, target = spans(numbers), models["full"]
    depth = len(numbers.scalars[f"patching/{sources[0]}/examples"][0]["s1"])
    with torch.no_grad():
        full = np.array([likelihood(target, span) for span in given])
        made = {
            (reading.__name__, name): np.array([after_patching(target, span, reading(models[name], span, depth)) for span in given])
            for reading in (as_listed, block_outputs)
            for name in {"retain", *sources}
        }
    compared = 0
    for name in sources:
        examples = numbers.scalars[f"patching/{name}/examples"]
        assert not numbers.scalars[f"patching/{name}/skipped"]
        np.testing.assert_allclose(full, [example["full_score"] for example in examples], atol=LOGPROB)
        np.testing.assert_allclose(made["as_listed", "retain"], [example["s1"] for example in examples], atol=LOGPROB)
        np.testing.assert_allclose(made["as_listed", name], [example["s2"] for example in examples], atol=LOGPROB)
        theirs = depth_score(full, made["as_listed", "retain"], made["as_listed", name])
        np.testing.assert_allclose(theirs, [example["uds"] for example in examples], atol=LOGPROB)
        assert theirs.mean() == pytest.approx(numbers.scalars[f"patching/{name}/average"], abs=LOGPROB)
        ours = depth_score(full, made["block_outputs", "retain"], made["block_outputs", name])
        derived = f"derived/patching_block_output/{name}"
        if f"{derived}/per_example" in numbers.scalars:
            np.testing.assert_allclose(ours, numbers.scalars[f"{derived}/per_example"], atol=LOGPROB)
            assert ours.mean() == pytest.approx(numbers.scalars[f"{derived}/average"], abs=LOGPROB)
            compared += 1
        if name == "full":
            assert ours.tolist() == [0.0] * len(given)  # exactly, and not so in the released form
            assert theirs.max() > 0
        if name == "retain":
            assert ours.tolist() == [1.0] * len(given)
    assert compared
    assert all(math.isfinite(value) for value in full)
