"""Linear algebra of methods that remove directions from activations: bases, projections, moments and principal directions.

Knows matrices of row vectors only. A subspace is a basis of orthonormal rows [k, d]; the projection off it is never made into a d x d
matrix. Rows that depend on others are dropped, by a stated tolerance, instead of being turned into directions that nobody asked for
(which is what a QR decomposition makes of them).
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(rows: Tensor, *, off: Tensor | None = None, tolerance: float | None = None) -> Tensor:
    """Orthonormal rows of the same span, without the rows that depend on earlier ones.

    With a basis `off`, the part of the span that lies off it: `torch.cat([off, orthonormal(rows, off=off)])` is a basis of both.
    Differentiable in `rows`.

    Args:
        rows: float32 or float64 [n, d]; rows of zeros depend on anything.
        off: orthonormal rows [m, d].
        tolerance: a row is dropped when what earlier rows and `off` leave of it is at most this share of its length. By default the
            square root of the precision: the direction of a smaller rest would be wrong by more than that.

    Returns:
        [r, d] with r at most min(n, d - m), possibly 0; the signs are arbitrary.

    >>> basis = orthonormal(torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0], [0.0, -6.0, -8.0]]))
    >>> basis.shape, basis.abs()
    (torch.Size([1, 3]), tensor([[0.0000, 0.6000, 0.8000]]))
    """
    tolerance = torch.finfo(rows.dtype).eps ** 0.5 if tolerance is None else tolerance
    free = rows if off is None else project_off(project_off(rows, off), off)
    kept = _independent(rows.detach(), rows.new_empty(0, rows.shape[1]) if off is None else off.detach(), tolerance)
    basis: Tensor = torch.linalg.qr(free[kept].mT).Q.mT
    return basis


def _independent(rows: Tensor, basis: Tensor, tolerance: float) -> list[int]:
    """The positions of rows that stand off `basis` and off the kept rows before them."""
    kept = []
    for number, row in enumerate(rows):
        # Twice: the first projection leaves an error of the size of the row, not of its rest.
        rest = project_off(project_off(row, basis), basis)
        if rest.norm() > tolerance * row.norm():
            kept.append(number)
            basis = torch.cat([basis, (rest / rest.norm())[None]])
    return kept


def project_off(vectors: Tensor, basis: Tensor) -> Tensor:
    """What is left of vectors when their part in a subspace is taken away: x - (x Q') Q.

    Args:
        vectors: [..., d].
        basis: orthonormal rows Q [k, d]; with no rows nothing is taken away.

    Returns:
        [..., d] in the type of `vectors`; computed in that of `basis` where it is the finer one.

    >>> project_off(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0.0, 0.0, 1.0]]))
    tensor([1., 2., 0.])
    """
    common = torch.promote_types(vectors.dtype, basis.dtype)
    exact, rows = vectors.to(common), basis.to(common)
    return (exact - (exact @ rows.mT) @ rows).to(vectors.dtype)


class Moments:
    """Running first and second moments of vectors, in float64 since the large mean of activations would drown their variance."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, vectors: Tensor, mask: Tensor | None = None) -> None:
        """Take in more vectors; no gradient is kept.

        Args:
            vectors: [..., d].
            mask: [...], not 0 where a vector counts; by default all count.
        """
        flat = (vectors.flatten(0, -2) if mask is None else vectors[mask.bool()]).detach().double()
        if self._sum is None or self._squares is None:
            self._sum, self._squares = flat.new_zeros(flat.shape[1]), flat.new_zeros(flat.shape[1], flat.shape[1])
        self._sum += flat.sum(0)
        self._squares += flat.mT @ flat
        self.count += len(flat)

    def mean(self) -> Tensor:
        """Mean of the vectors, float64 [d]."""
        return self._known(self._sum) / self.count

    def second(self) -> Tensor:
        """Second moment about 0, the mean of x'x, float64 [d, d]."""
        return self._known(self._squares) / self.count

    def covariance(self) -> Tensor:
        """Second moment about the mean, float64 [d, d]."""
        mean = self.mean()
        return self.second() - torch.outer(mean, mean)

    def _known(self, total: Tensor | None) -> Tensor:
        if total is None or not self.count:
            raise ValueError("moments of 0 vectors; allowed: 1 or more")
        return total


def principal_directions(moment: Tensor, k: int, *, floor: float = 0.0) -> Tensor:
    """The directions in which a second moment is largest: its top eigenvectors, as rows.

    Args:
        moment: symmetric, positive semi-definite [d, d]; about 0 or about the mean (PCA).
        k: how many, 1 or more.
        floor: directions whose eigenvalue is not above it are left out, as are those whose eigenvalue is rounding.

    Returns:
        Orthonormal rows [at most k, d], the largest eigenvalue first; the largest entry of each is positive.

    >>> principal_directions(torch.diag(torch.tensor([1.0, 9.0, 4.0])), 2)
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    values, vectors = torch.linalg.eigh(moment)
    rounding = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(moment.dtype).eps
    top, rows = values.flip(0)[:k], vectors.mT.flip(0)[:k]
    rows = rows[top > max(floor, rounding)]
    signed: Tensor = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return signed


def directions_off(wanted: Tensor, kept: Tensor, k: int, kept_rank: int) -> Tensor:
    """The top k directions of one second moment off the top directions of another.

    With P the projection off the top `kept_rank` eigenvectors of `kept`: the top k eigenvectors of P `wanted` P.

    Args:
        wanted: second moment of what the directions should carry [d, d].
        kept: second moment of what they should not touch [d, d].
        k: how many directions, 1 or more.
        kept_rank: rank of what is not touched, 0 or more.

    Returns:
        Orthonormal rows [at most k, d], fewer where P `wanted` P is of lower rank.

    >>> wanted, kept = torch.diag(torch.tensor([5.0, 4.0, 1.0])), torch.diag(torch.tensor([9.0, 0.0, 0.0]))
    >>> directions_off(wanted, kept, k=1, kept_rank=1)
    tensor([[0., 1., 0.]])
    """
    untouched = principal_directions(kept, kept_rank) if kept_rank else kept.new_empty(0, len(kept))
    free = project_off(project_off(wanted, untouched).mT, untouched)
    # Relative to all of `wanted`: where nothing is left of it, its rounding is no direction.
    rounding = float(torch.linalg.matrix_norm(wanted, 2)) * len(wanted) * torch.finfo(wanted.dtype).eps
    return principal_directions((free + free.mT) / 2, k, floor=rounding)
