"""Knowledge unlearning for mitigating privacy risks in language models: gradient ascent on the forget set.

Joel Jang, Dongkeun Yoon, Sohee Yang, Sungmin Cha, Moontae Lee, Lajanugen Logeswaran, Minjoon Seo. ACL 2023, arXiv:2210.01504. For
vision it is NegGrad: Aditya Golatkar, Alessandro Achille, Stefano Soatto, CVPR 2020, arXiv:1911.04933. Defaults are TOFU's as in
open-unlearning (lr 1e-5, 10 epochs, batch 32).

Deviations: the loss is a mean over answer tokens, not over all tokens; the rate is constant, without warm-up; the epochs are fixed,
where the paper stops at an extraction threshold; optimizer and weight decay are those of the original's training; batch-norm is
frozen by default.
"""

from __future__ import annotations

from torch import Tensor, nn

from unlearnbench.api import Batch, MethodView
from unlearnbench.finetuning import TrainedMethod, shuffled


class GradientAscent(TrainedMethod):
    """Maximise the loss of the forget rows. Never reads retain rows; epochs pass over the forget rows."""

    paper = "arXiv:2210.01504"
    tasks = ("generate", "classify", "diffuse")

    def unlearn(self, model: nn.Module, view: MethodView, *, seed: int) -> nn.Module:
        """See `Method.unlearn`."""
        rows = view.forget.train

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return -view.loss(model, batch).mean()

        return self.descend(model, view, loss, shuffled(rows, self.batch_size, seed=seed), n=len(rows), seed=seed)
