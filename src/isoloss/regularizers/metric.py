"""The metric of a regularizer that a weighted squared norm touches from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoloss.flat import Layout, flatten


@dataclass(frozen=True)
class Block:
    """A matrix M among the parameters, by its singular vectors and (sigma^2 + s^2)^(1/2) - s."""

    start: int  # where it lies in theta
    left: Tensor  # shape (rows, k)
    sizes: Tensor  # shape (k,)
    right: Tensor  # shape (k, columns)


@dataclass(frozen=True)
class Metric:
    """P(theta), positive definite, with grad R = P theta, about as large as the Hessian of R where
    that is largest; known by its inverse."""

    inverse: Tensor  # of its diagonal, shape (n,)
    blocks: tuple[Block, ...] = ()  # what there is beside the diagonal

    def solve(self, vectors: Tensor) -> Tensor:
        """P^-1 times vectors along the last axis, as new ones."""
        found = vectors * self.inverse
        for block in self.blocks:
            rows, columns = len(block.left), block.right.shape[1]
            part = slice(block.start, block.start + rows * columns)
            matrix = vectors[..., part].unflatten(-1, (rows, columns))
            by_left = block.left @ (block.sizes[:, None] * (block.left.T @ matrix))
            by_right = ((matrix @ block.right.T) * block.sizes) @ block.right
            found[..., part] += 0.5 * (by_left + by_right).flatten(-2)
        return found


def diagonal(weights: Mapping[str, Tensor], layout: Layout) -> Metric:
    """The metric of a sum of squares with these weights, by the names of parameters; what has none
    is as free as what is freest."""
    shapes, one = layout.shapes, next(iter(weights.values()))
    spread = {
        name: weights[name].expand(shape) if name in weights else one.new_zeros(shape)
        for name, shape in shapes.items()
    }
    whole = flatten(list(spread.values()))
    return Metric(torch.where(whole > 0, whole, whole[whole > 0].min()).reciprocal())


def of_matrices(matrices: Mapping[str, Tensor], smoothing: float, layout: Layout) -> Metric:
    """The metric of the smoothed nuclear norm of matrices by name: P^-1 is the mean of those of
    M M^T and M^T M, (M M^T + s^2)^(1/2) and the like (Kuemmerle and Sigl, JMLR 19, 2018)."""
    blocks: list[Block] = []
    whole = next(iter(matrices.values())).new_full((layout.size,), smoothing)
    freest = torch.tensor(smoothing, device="cpu")
    for name, piece in layout.named(torch.arange(layout.size, device="cpu")).items():
        if name in matrices:
            left, values, right = torch.linalg.svd(matrices[name].flatten(1), full_matrices=False)
            sizes = (values.square() + smoothing * smoothing).sqrt()
            freest = torch.maximum(freest, sizes.max().cpu())
            blocks.append(Block(int(piece.flatten()[0]), left, sizes - smoothing, right))
    for name, piece in layout.named(whole).items():
        if name not in matrices:
            piece.fill_(freest.item())
    return Metric(whole, tuple(blocks))


def summed(parts: Sequence[tuple[float, Metric]]) -> Metric | None:
    """The metric of a weighted sum, weights positive; None where no simple one is known."""
    if len(parts) == 1:
        (weight, metric) = parts[0]
        blocks = tuple(replace(block, sizes=block.sizes / weight) for block in metric.blocks)
        return Metric(metric.inverse / weight, blocks)
    if any(metric.blocks for _, metric in parts):
        return None
    whole = torch.stack([weight / metric.inverse for weight, metric in parts]).sum(0)
    return Metric(whole.reciprocal())
