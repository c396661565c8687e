"""The depth score by hand, and activations put from one model into another."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlearnbench.api import UserError
from unlearnbench.layers import Inserted, captured, insert
from unlearnbench.mechanisms.patching import depth_score, patched
from unlearnbench.testing import tiny_language_model

FULL = np.array([-0.5])
ORACLE = np.array([[-0.5, -1.5, -2.5, -4.5]])
"""It loses 0, 1, 2 and 4."""


def test_layers_count_by_what_the_oracle_loses_there() -> None:
    half_of_the_last = np.array([[-9.0, -0.5, -0.5, -2.5]])  # 9 at a layer that does not count
    assert depth_score(FULL, ORACLE, half_of_the_last) == pytest.approx(2 / 7)
    assert depth_score(FULL, ORACLE, half_of_the_last, threshold=2.0) == pytest.approx(2 / 4)  # a loss of 2 is not above 2
    beyond = np.array([[-0.5, 0.0, -99.0, -99.0]])  # more likely than before at one, less than with the oracle at others
    assert depth_score(FULL, ORACLE, beyond) == pytest.approx(6 / 7)


def test_anchors_and_the_undecided() -> None:
    assert depth_score(FULL, ORACLE, ORACLE).tolist() == [1.0]
    assert depth_score(FULL, ORACLE, np.full((1, 4), -0.5)).tolist() == [0.0]
    both = depth_score(np.array([-0.5, -0.5]), np.concatenate([ORACLE, np.full((1, 4), -0.54)]), np.concatenate([ORACLE, ORACLE]))
    assert both[0] == 1.0
    assert np.isnan(both[1])


def test_numbers_that_do_not_fit() -> None:
    for wrong in ((FULL, ORACLE, ORACLE[:, :2]), (FULL[:0], ORACLE, ORACLE), (FULL, ORACLE[0], ORACLE[0])):
        with pytest.raises(ValueError, match="shapes are"):
            depth_score(*wrong)
    with pytest.raises(ValueError, match="NaN or infinite"):
        depth_score(FULL, ORACLE, np.where(ORACLE < -4, -np.inf, ORACLE))


# ------------------------------------------------------------------------------------------------------------------------ patched

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def outputs(model: nn.Module, layer: int) -> Tensor:
    with captured(model, [layer]) as found:
        logits(model)
    return found[layer]


def places(*positions: int) -> Tensor:
    chosen = torch.zeros(IDS.shape, dtype=torch.bool)
    chosen[:, list(positions)] = True
    return chosen


@pytest.mark.parametrize("layer", [0, -1])
def test_a_model_patched_into_itself_is_itself(layer: int) -> None:
    model = tiny_language_model(0).eval()
    states, before = outputs(model, layer), logits(model)
    for chosen in (places(0, 1, 2, 3, 4), places(3), places()):
        with patched(model, layer, states, chosen):
            assert torch.equal(logits(model), before)


def test_all_positions_of_the_last_block_leave_the_targets_head_alone() -> None:
    target, source = tiny_language_model(0).eval(), tiny_language_model(1).eval()
    before = logits(target)
    with patched(target, -1, outputs(source, -1), places(0, 1, 2, 3, 4)):
        found = logits(target)
    joined = copy.deepcopy(source)
    joined.model.norm, joined.lm_head = target.model.norm, target.lm_head  # type: ignore[union-attr]
    torch.testing.assert_close(found, logits(joined))
    assert torch.equal(logits(target), before)  # nothing stays behind


def test_positions_that_are_not_chosen_and_those_before_are_as_they_were() -> None:
    target, source = tiny_language_model(0).eval(), tiny_language_model(1).eval()
    before, states = logits(target), outputs(source, 0)
    with patched(target, 0, states, places(2)):
        found, seen = logits(target), outputs(target, 0)
    assert torch.equal(found[:, :2], before[:, :2])
    changed = (found - before).abs().amax(-1) > 1e-5
    assert changed[:, 2:].all()  # what comes later attends to it
    assert torch.equal(seen[:, 2], states[:, 2])


class Silent(Inserted):
    """Puts out zeros."""

    def forward(self, *args: object, **named: object) -> Tensor:
        return torch.zeros_like(self.inner(*args, **named))


def test_what_is_inserted_acts_before() -> None:
    target, source = tiny_language_model(0).eval(), tiny_language_model(1).eval()
    states = outputs(source, 0)
    with patched(target, 0, states, places(0, 1, 2, 3, 4)):
        expected = logits(target)
    insert(target, "model.layers.0", Silent(target.get_submodule("model.layers.0")))
    with patched(target, 0, states, places(0, 1, 2, 3, 4)):
        assert torch.equal(logits(target), expected)


def test_a_block_that_is_not_there() -> None:
    model = tiny_language_model(0)
    with pytest.raises(UserError, match="no block 99"), patched(model, 99, torch.zeros(1), places()):
        pass
