"""Datamodel matching: fine-tuning on what the model's logits would be without the forget rows, as an attribution predicts them.

Kristian Georgiev, Roy Rinberg, Sung Min Park, Shivam Garg, Andrew Ilyas, Aleksander Madry, Seth Neel. "Attribute-to-Delete: Machine
Unlearning via Datamodel Matching". ICLR 2025, arXiv:2410.23232. Targets are z_0(x) - m sum_{i in F} tau[i, x] for all forget rows and
retain rows three times as many, z_0 the model to unlearn and tau the effect of including row i on each logit at x (algorithms C.2, C.3).
Labels are not read by the matching; TRAK and leave-one-out read those of the training rows.

Deviations: m is calibrated on models trained without other rows (1 in the published code; 0.5 was right for a convex model and datamodels
of half subsets); z_0 is taken in eval mode, once, on rows without augmentation; rows are shuffled in every epoch; batch-norm is frozen
unless asked otherwise; effects are summed in float32, not float16; TRAK with targets of all logits and ten models, where the paper's
best results use datamodels of 1,000 to 20,000 models. Subsets that leave out neighbourhoods are ours: independent rows say little of what a
coherent group does together.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearnbench.api import MethodView, Scenario, UserError
from unlearnbench.attribution import removal
from unlearnbench.mechanisms.matching import Fraction, MatchingMethod, logits_of

Attribution = Literal["datamodels", "trak", "leave_one_out"]


class DatamodelMatching(MatchingMethod):
    """Match the logits that an attribution predicts for a model without the forget rows."""

    paper = "arXiv:2410.23232"

    attribution: Attribution = "datamodels"
    """datamodels: regression on subset models; trak; leave_one_out: one Newton step without each row, for linear models alone."""
    multiplier: Fraction | None = None
    """Factor of the predicted change; by default calibrated on models trained without other rows."""
    calibration_models: Annotated[int, Field(ge=2)] = 16
    """Models trained without as many retain rows as there are to be forgotten, to calibrate the factor."""
    n_subsets: Annotated[int, Field(ge=10)] = 1000
    """Datamodels: models trained on subsets."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Datamodels: share of the training rows that are in a subset."""
    subsets: Literal["independent", "neighbourhoods"] = "independent"
    """Datamodels: a subset lacks rows drawn one by one, or neighbourhoods in a model's features, of up to twice the forget rows."""
    regression: Literal["lasso", "ridge"] = "lasso"
    """Datamodels: sparse, as in the paper, or dense, many times faster."""
    checkpoints: Annotated[int, Field(ge=1)] = 10
    """TRAK: models trained on all rows over which effects are averaged."""
    dimension: Annotated[int, Field(ge=1)] = 512
    """TRAK: length of projected gradients."""
    ridge: Fraction = 1e-3
    """TRAK: added to the projected Gram matrix, relative to its mean eigenvalue."""

    def supports(self, scenario: Scenario) -> str | None:
        """Images with labels; leave-one-out needs a linear model."""
        reason = super().supports(scenario)
        if reason is None and self.attribution == "leave_one_out" and not removal.is_linear(scenario.build(0)):
            return "leave-one-out effects are exact for linear models alone, and this scenario's model has other layers"
        return reason

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        images = self.images(view)
        return self.descend(model, view, images, logits_of(model, images) - self.change(model, view, images), seed=seed)

    def change(self, model: nn.Module, view: MethodView, images: Tensor) -> Tensor:
        """What removing the forget rows is predicted to take off the logits of the matched rows, ``[n, K]``."""
        if self.multiplier == 0:
            return torch.zeros(())
        if self.multiplier is None and not len(self.sample(view)) > 1:
            raise UserError(f"retain_multiplier is {self.retain_multiplier}: calibrating the multiplier needs retain rows; allowed: 1, say")
        if self.attribution == "leave_one_out":  # of this very model, and quick: there is nothing to share
            found = self._found(view, images, model)
        else:
            found = view.shared(self.key(), lambda: self._found(view, images, None))
        factor = float(found["factor"]) if self.multiplier is None else self.multiplier
        return factor * found["effects"]

    def key(self) -> dict[str, object]:
        """What the effects and their factor depend on beside the request."""
        fields = {
            "datamodels": ("n_subsets", "alpha", "subsets", "regression"),
            "trak": ("checkpoints", "dimension", "ridge"),
            "leave_one_out": (),
        }
        calibration = self.calibration_models if self.multiplier is None else 0
        own = {name: getattr(self, name) for name in fields[self.attribution]}
        return {"attribution": self.attribution, "retain": self.retain_multiplier, "calibration": calibration, **own}

    def _found(self, view: MethodView, images: Tensor, model: nn.Module | None) -> dict[str, Tensor]:
        rows = removal.training_rows(view)
        candidates = [view.retain.eval.ids[i] for i in self.sample(view).tolist()]
        if model is not None:
            summed = removal.by_leave_one_out(view, model, rows, images)
        elif self.attribution == "trak":
            summed = removal.by_trak(view, rows, images, checkpoints=self.checkpoints, dimension=self.dimension, ridge=self.ridge)
        else:
            summed = removal.by_datamodels(
                view, rows, images, n_subsets=self.n_subsets, alpha=self.alpha, subsets=self.subsets, regression=self.regression
            )
        count = self.calibration_models if self.multiplier is None else 0
        effects, factor = removal.change(view, rows, images, summed, candidates=candidates, removals=count)
        return {"effects": effects, "factor": factor}
