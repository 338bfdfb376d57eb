"""Rows that make up most of the Gauss-Newton part of a dense network's Hessian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoloss._kernels.chain import bare
from isoloss.data import Chunk, Chunks
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss, ModelLoss

Array = NDArray[np.float64]

SHARE, LEAST, MOST = 0.5, 8, 500
"""Rows as a share of the training examples, and how many at least and at most."""
MOST_ENTRIES = 2**24
"""Entries up to which the Hessians of all examples' losses by their outputs are formed."""
RIGHT = 1e-3
"""Relative error of a gradient composed of the rows above which they are not those of the model."""


@dataclass(frozen=True)
class DenseRows:
    """The entries of all rows that belong to one dense layer: of row i, slopes_i inputs_i'."""

    weight: int  # where the layer's weight begins in the flat vector
    bias: int  # likewise; -1 where it has none
    inputs: Tensor  # shape (m, features)
    slopes: Tensor  # shape (m, outputs)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        """The part of a flat vector that is this layer's weight, and that of its bias."""
        outputs, features = self.slopes.shape[1], self.inputs.shape[1]
        weight = vector[self.weight : self.weight + outputs * features].view(outputs, features)
        return weight, None if self.bias < 0 else vector[self.bias : self.bias + outputs]


@dataclass(frozen=True)
class GaussNewton:
    """A matrix Z of m rows for which Z' Z is a part of the Hessian of the mean loss.

    A row is the derivative of one example's outputs along one eigenvector of the Hessian of its
    loss by them, times the root of the eigenvalue (Schraudolph, Neural Computation 14, 2002). In a
    dense layer it is the outer product of a slope and an input, and is kept as these.

    Attributes:
        layers: The rows, layer by layer.
        size: Number of parameters, n.
        gram: Z Z', shape (m, m).
    """

    layers: tuple[DenseRows, ...]
    size: int
    gram: Array

    def scaled(self, factor: float) -> GaussNewton:
        """That of a multiple of the loss."""
        root = factor**0.5
        layers = tuple(replace(layer, slopes=layer.slopes * root) for layer in self.layers)
        return GaussNewton(layers, self.size, self.gram * factor)

    def products(self, vector: Tensor) -> Array:
        """Z times a vector of shape (n,), shape (m,)."""
        total = torch.zeros(len(self.gram), dtype=vector.dtype)
        for layer in self.layers:
            weight, bias = layer.split(vector)
            along = layer.inputs @ weight.t()
            if bias is not None:
                along += bias
            total += torch.linalg.vecdot(along, layer.slopes)
        return total.double().numpy()

    def combined(self, shares: Array) -> Tensor:
        """Z' times a vector of shape (m,), shape (n,)."""
        first = self.layers[0].slopes
        found = first.new_empty(self.size)
        each = torch.from_numpy(shares).to(first.dtype).unsqueeze(1)
        for layer in self.layers:
            weight, bias = layer.split(found)
            slopes = layer.slopes * each
            torch.mm(slopes.t(), layer.inputs, out=weight)
            if bias is not None:
                torch.sum(slopes, 0, out=bias)
        return found

    def solved(self, image: Array, shift: float) -> Array:
        """(shift I + Z Z')^-1 times a vector of shape (m,)."""
        matrix = torch.from_numpy(self.gram + shift * np.eye(len(self.gram)))
        factor = torch.linalg.cholesky_ex(matrix)[0]
        return torch.cholesky_solve(torch.from_numpy(image)[:, None], factor)[:, 0].numpy()


def gauss_newton(
    network: FlatNetwork, chunks: Chunks, loss: Loss, theta: Tensor
) -> GaussNewton | None:
    """The rows of the examples whose loss bends most at theta; None where there are no such rows.

    That is where a parameter belongs to anything but a dense layer, which is applied once to one
    vector an example; where outputs are not of shape (n, classes), or the loss cannot be
    differentiated twice by them; on other devices than a CPU, where it was not measured to pay.
    """
    layers = _dense_layers(network)
    if layers is None or network.device.type != "cpu" or not chunks.kept:
        return None
    network.load(theta)
    try:
        found = _heaviest(network, list(chunks), loss, chunks.divisor)
        return None if found is None else _rows(network, layers, *found)
    except Exception:  # whatever a loss raises that does not take float64 or a second derivative
        return None


def _dense_layers(network: FlatNetwork) -> list[tuple[nn.Linear, int, int]] | None:
    """The layers that have all parameters, each with the places of its weight and its bias."""
    if not isinstance(network.model, nn.Module):
        return None
    starts: dict[int, int] = {}
    start = 0
    for leaf in network.leaves:
        starts[id(leaf)] = start
        start += leaf.numel()
    found: list[tuple[nn.Linear, int, int]] = []
    for module in network.model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in starts]
        if not own:
            continue
        if type(module) is not nn.Linear or not bare(module) or own[0] is not module.weight:
            return None
        bias = starts.pop(id(module.bias), -1)
        found.append((module, starts.pop(id(module.weight)), bias))
    return found if found and not starts else None


def _heaviest(
    network: FlatNetwork, chunks: list[Chunk], loss: Loss, divisor: float
) -> tuple[Tensor, Tensor] | None:
    """Inputs, shape (m, ...), and for each the slope of its row by its outputs, (m, classes)."""
    if isinstance(loss, ModelLoss):
        return None
    bends: list[Tensor] = []
    examples = sum(chunk.examples for chunk in chunks)
    for chunk in chunks:
        with torch.no_grad():
            outputs = network(chunk.inputs)
        plain = isinstance(outputs, Tensor) and isinstance(chunk.inputs, Tensor)
        if not plain or outputs.ndim != 2 or examples * outputs.shape[1] ** 2 > MOST_ENTRIES:
            return None
        weights = 1.0 if chunk.weights is None else chunk.weights[:, None, None]
        bends.append(_bends(loss, outputs, chunk.targets) * weights / divisor)
    all_bends = torch.cat(bends)
    classes = all_bends.shape[1]
    count = min(max(LEAST, int(SHARE * examples)), MOST, examples * classes)
    sizes = all_bends.diagonal(dim1=1, dim2=2).sum(1)
    # those that bend alike are drawn by lot, which rounding must not decide
    lots = torch.rand(examples, classes, generator=torch.Generator().manual_seed(0)).double()
    chosen = (sizes * (1 + 1e-6 * lots[:, 0])).topk(min(count, examples)).indices.sort().values
    values, vectors = torch.linalg.eigh(all_bends[chosen])
    heavy = (values * (1 + 1e-6 * lots[chosen])).flatten().topk(count)
    each = heavy.indices[heavy.values > 0].sort().values
    which, axis = each // classes, each % classes
    slopes = vectors[which, :, axis] * values[which, axis].sqrt()[:, None]
    ends = torch.tensor([len(b) for b in bends]).cumsum(0)
    examples_of_rows = chosen[which]
    inputs: list[Tensor] = []
    for chunk, end in zip(chunks, ends.tolist(), strict=True):
        mine = (examples_of_rows < end) & (examples_of_rows >= end - chunk.examples)
        inputs.append(chunk.inputs[examples_of_rows[mine] - (end - chunk.examples)])
    return torch.cat(inputs), slopes.to(network.dtype)


def _bends(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The Hessian of each example's loss by its outputs, shape (n, classes, classes), float64."""
    leaf = outputs.double().requires_grad_()
    with torch.enable_grad():
        total = loss(leaf, targets).sum()
        (slope,) = torch.autograd.grad(total, leaf, create_graph=True)
        columns = [
            torch.autograd.grad(column.sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for column in slope.unbind(1)
        ]
    return torch.stack(columns, 1)


def _rows(
    network: FlatNetwork,
    layers: list[tuple[nn.Linear, int, int]],
    inputs: Tensor,
    slopes: Tensor,
) -> GaussNewton | None:
    """The rows from one forward and backward pass; None if they are not the model's."""
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer, _, _ in layers}

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen[module].append((given[0].detach().clone(), output))
        return output.clone()  # an activation may overwrite it

    handles = [layer.register_forward_hook(note) for layer, _, _ in layers]
    try:
        with torch.enable_grad():
            outputs = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(calls) != 1 or calls[0][0].ndim != 2 for calls in seen.values()):
        return None
    calls = [seen[layer][0] for layer, _, _ in layers]
    total = (outputs * slopes).sum()
    through = [output for _, output in calls]
    found = torch.autograd.grad(total, [*through, *network.leaves], materialize_grads=True)
    backs, whole = found[: len(layers)], flatten(found[len(layers) :])
    dense = tuple(
        DenseRows(weight, bias, given, back)
        for (_, weight, bias), (given, _), back in zip(layers, calls, backs, strict=True)
    )
    gram = sum(
        (one.inputs @ one.inputs.t() + (one.bias >= 0)) * (one.slopes @ one.slopes.t())
        for one in dense
    )
    assert isinstance(gram, Tensor)  # noqa: S101
    rows = GaussNewton(dense, network.size, gram.double().numpy())
    wrong = torch.dist(rows.combined(np.ones(len(inputs))), whole)
    return rows if wrong <= RIGHT * whole.norm() else None
