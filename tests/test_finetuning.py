"""Streams of batches, pairs of forget and retain rows, and the recipe of a method that trains."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from unlearnbench.finetuning import Joined, TrainedMethod, endless, paired, shuffled
from unlearnbench.methods.grad_diff import GradDiff
from unlearnbench.testing import in_training, tiny_vision_model, tiny_vision_view
from unlearnbench.training import Recipe, batches

VIEW = tiny_vision_view()


def test_endless_goes_through_pass_after_pass() -> None:
    expected = [rows.tolist() for epoch in range(3) for rows in batches(7, 3, seed=5, epoch=epoch)]
    assert [rows.tolist() for rows in islice(endless(7, 3, seed=5), 9)] == expected
    assert [rows.tolist() for rows in islice(endless(7, 3, seed=5, skip=4), 5)] == expected[4:]


def test_shuffled_gives_each_row_once_an_epoch() -> None:
    images = VIEW.retain.train.batch(range(20))["images"]
    epochs = [torch.cat([batch["images"] for batch in shuffled(VIEW.retain.train, 6, seed=0)(epoch)]) for epoch in range(2)]
    for seen in epochs:
        assert sorted(seen.flatten(1).sum(1).tolist()) == sorted(images.flatten(1).sum(1).tolist())
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("swap", [False, True])
def test_pairs_pass_over_forget_and_the_other_rows_run_on(swap: bool) -> None:
    forget, retain = (VIEW.retain.train, VIEW.forget.train) if swap else (VIEW.forget.train, VIEW.retain.train)
    steps = paired(forget, retain, 4, seed=1)
    pairs = [pair for epoch in range(10) for pair in steps(epoch)]
    per_epoch = len(list(steps(0)))
    for epoch in range(10):
        rows = torch.cat([pair.rows for pair in pairs[epoch * per_epoch : (epoch + 1) * per_epoch]])
        assert sorted(rows.tolist()) == list(range(len(forget)))
    for pair in pairs:
        assert torch.equal(pair.forget["images"], forget.batch(pair.rows)["images"])
    expected = [retain.batch(rows)["images"] for rows in islice(endless(len(retain), 4, seed=1), len(pairs))]
    assert all(torch.equal(pair.retain["images"], images) for pair, images in zip(pairs, expected, strict=True))


def test_sets_of_equal_size_do_not_meet_in_the_same_pairs() -> None:
    pairs = [pair for epoch in range(2) for pair in paired(VIEW.forget.train, VIEW.forget.train, 1, seed=0)(epoch)]
    assert any(not torch.equal(pair.forget["images"], pair.retain["images"]) for pair in pairs)


def test_the_recipe_is_the_originals_with_a_constant_rate_and_no_dropout() -> None:
    original = Recipe(
        epochs=99,
        batch_size=99,
        lr=9.0,
        optimizer="sgd",
        momentum=0.5,
        weight_decay=0.1,
        schedule="cosine",
        warmup=0.1,
        clip=1.0,
        precision="bf16",
    )
    method = GradDiff(lr=0.5, epochs=2, batch_size=3, accumulate=4, batch_norm="train")
    expected = Recipe(
        epochs=2,
        batch_size=3,
        lr=0.5,
        optimizer="sgd",
        momentum=0.5,
        weight_decay=0.1,
        clip=1.0,
        precision="bf16",
        accumulate=4,
        batch_norm="train",
        dropout=False,
    )
    assert method.recipe(replace(VIEW, recipe=original)) == expected


def test_accumulated_batches_of_unequal_size_equal_the_large_batch() -> None:
    view = in_training(VIEW, optimizer="sgd", momentum=0.0)

    def unlearned(**settings: int) -> list[torch.Tensor]:
        # Ten forget rows in batches of 4, 4 and 2: a mean over batches would not be the mean over rows.
        method = GradDiff(lr=0.1, epochs=2, retain_weight=0.0, **settings)
        return list(method.unlearn(tiny_vision_model(), view, seed=0).parameters())

    torch.testing.assert_close(unlearned(batch_size=4, accumulate=3), unlearned(batch_size=10), rtol=1e-10, atol=1e-12)


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        TrainedMethod()  # type: ignore[abstract]


def test_two_sets_joined_are_one_set_with_the_first_rows_first() -> None:
    view = tiny_vision_view()
    both = Joined(view.forget.train, view.retain.train)
    assert both.ids == view.forget.train.ids + view.retain.train.ids
    batch = both.batch(torch.tensor([12, 3, 10, 0]))
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    forget, retain = (rows.batch(range(len(rows)))["images"] for rows in (view.forget.train, view.retain.train))
    assert torch.equal(batch["images"], torch.stack([retain[2], forget[3], retain[0], forget[0]]))
    taken = both.take([12, 3, 4]).take([2, 0])
    assert taken.ids == taken.clusters == (view.forget.train.ids[4], view.retain.train.ids[2])
    assert torch.equal(taken.batch([1, 0])["images"], torch.stack([retain[2], forget[4]]))
    assert len(taken) == 2
    assert torch.equal(both.batch([11])["images"], view.retain.train.batch([1])["images"])
