"""Most of the Gauss-Newton part of the loss's Hessian, from the examples whose loss bends most."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoloss._kernels.chain import bare
from isoloss.data import Chunk, Chunks, random_state_kept
from isoloss.evaluation.rows import DenseRows, GaussNewton, StoredRows
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss, ModelLoss
from isoloss.names import functional

SHARE, LEAST, MOST = 0.5, 8, 500
"""Rows of dense layers as a share of the training examples, and how many at least and at most."""
MOST_STORED, MOST_NUMBERS = 150, 2**23
"""Rows that are stored entry by entry at most, and their entries together; a network so large that
half as many rows have more has none: so few know too little."""
AT_ONCE = 2**22
"""Entries of the rows that are made at once."""
MOST_ENTRIES = 2**24
"""Entries up to which the Hessians of all examples' losses by their outputs are formed."""
RIGHT = 1e-3
"""Relative error of a gradient composed of the rows above which they are not those of the model."""


def gauss_newton(
    network: FlatNetwork,
    seen: Iterable[tuple[Chunk, Any]],
    chunks: Chunks,
    loss: Loss,
    held: Tensor | None = None,
) -> GaussNewton | None:
    """The rows of the examples whose loss bends most; None where there are no such rows.

    `seen` gives the chunks with the network's outputs at the theta that it is set to. Rows are kept
    as outer products where every parameter belongs to a dense layer that is applied once to one
    vector an example, otherwise entry by entry, with zeros in the entries of theta that are held.
    There are none where inputs, targets or outputs are no tensors, the outputs of shape (n,
    classes), where the loss cannot be differentiated twice by them, or torch not vectorize the
    model's gradients over examples; of very large models; on other devices than a CPU, where it was
    not measured to pay.
    """
    if network.device.type != "cpu" or not chunks.kept or isinstance(loss, ModelLoss):
        return None
    layers = dense_layers(network) if held is None else None
    most = min(MOST_STORED, MOST_NUMBERS // network.size)
    if layers is None and most < MOST_STORED // 2:
        return None
    try:
        with random_state_kept():
            bent = _bent(seen, loss, chunks.divisor)
            known = None
            if bent is not None and layers is not None:
                many = min(max(LEAST, int(SHARE * len(bent.bends))), MOST)
                known = _factored(network, layers, *bent.heaviest(many, network.dtype))
            if bent is not None and known is None and most >= MOST_STORED // 2:
                known = _stored(network, held, *bent.heaviest(most, network.dtype))
            return known
    except Exception:  # whatever a model or a loss raises that does not take what is asked of it
        return None


def dense_layers(network: FlatNetwork) -> list[tuple[nn.Linear, int, int | None]] | None:
    """The layers that have all parameters, each with the numbers of its weight and its bias."""
    if not isinstance(network.model, nn.Module):
        return None
    left = {id(leaf): number for number, leaf in enumerate(network.leaves)}
    found: list[tuple[nn.Linear, int, int | None]] = []
    for module in network.model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in left]
        if not own:
            continue
        if type(module) is not nn.Linear or not bare(module) or own[0] is not module.weight:
            return None
        bias = left.pop(id(module.bias), None)
        found.append((module, left.pop(id(module.weight)), bias))
    return found if found and not left else None


@dataclass(frozen=True)
class _Bent:
    """By how much each example's loss bends by its outputs."""

    inputs: list[Tensor]  # chunk by chunk
    bends: Tensor  # the Hessian of each example's part of the loss, shape (n, classes, classes)

    def heaviest(self, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs, shape (m, ...), and for each the slope of its row by its outputs, (m, classes);
        so many at most."""
        examples, classes = self.bends.shape[:2]
        count = min(most, examples * classes)
        sizes = self.bends.diagonal(dim1=1, dim2=2).sum(1)
        # those that bend alike are drawn by lot, which rounding must not decide
        source = torch.Generator().manual_seed(0)
        lots = torch.rand(
            examples, classes, generator=source, dtype=torch.float32, device="cpu"
        ).double()
        chosen = (sizes * (1 + 1e-6 * lots[:, 0])).topk(min(count, examples)).indices.sort().values
        values, vectors = torch.linalg.eigh(self.bends[chosen])
        heavy = (values * (1 + 1e-6 * lots[chosen])).flatten().topk(count)
        each = heavy.indices[heavy.values > 0].sort().values
        which, axis = each // classes, each % classes
        slopes = vectors[which, :, axis] * values[which, axis].sqrt()[:, None]
        of_rows, ends = chosen[which], np.cumsum([len(x) for x in self.inputs]).tolist()
        inputs: list[Tensor] = []
        for chunk, end in zip(self.inputs, ends, strict=True):
            mine = (of_rows < end) & (of_rows >= end - len(chunk))
            inputs.append(chunk[of_rows[mine] - (end - len(chunk))])
        return torch.cat(inputs), slopes.to(dtype)


def _bent(seen: Iterable[tuple[Chunk, Any]], loss: Loss, divisor: float) -> _Bent | None:
    """The Hessians of the examples' parts of the loss; None where they are not what rows need."""
    chunks: list[Chunk] = []
    outputs: list[Tensor] = []
    entries = 0
    for chunk, found in seen:  # one that rows cannot use ends the pass, and none is kept
        if not all(isinstance(one, Tensor) for one in (chunk.inputs, chunk.targets, found)):
            return None
        if found.ndim != 2:
            return None
        entries += chunk.examples * found.shape[1] ** 2
        if entries > MOST_ENTRIES:
            return None
        chunks.append(chunk)
        outputs.append(found)
    inputs, targets = [chunk.inputs for chunk in chunks], [chunk.targets for chunk in chunks]
    bends = _bends(loss, torch.cat(outputs), torch.cat(targets))
    weights = [bends.new_ones(c.examples) if c.weights is None else c.weights for c in chunks]
    return _Bent(inputs, bends * torch.cat(weights)[:, None, None] / divisor)


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
    return torch.stack(columns, 1).detach()


def _factored(
    network: FlatNetwork,
    layers: list[tuple[nn.Linear, int, int | None]],
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
    dense = DenseRows(
        [leaf.numel() for leaf in network.leaves],
        tuple((weight, bias) for _, weight, bias in layers),
        tuple(given for given, _ in calls),
        torch.cat(backs, 1),
    )
    return _checked(GaussNewton.of(dense), whole)


def _stored(
    network: FlatNetwork, held: Tensor | None, inputs: Tensor, slopes: Tensor
) -> GaussNewton | None:
    """The rows from a gradient for each; None if they are not the model's."""
    model = network.model
    call = functional(model) if isinstance(model, nn.Module) else model
    point = dict(zip(network.layout.shapes, (p.detach() for p in network.leaves), strict=True))

    def along(point: dict[str, Tensor], one: Tensor, slope: Tensor) -> Tensor:
        return (call(point, one.unsqueeze(0)).squeeze(0) * slope).sum()

    each = torch.func.vmap(torch.func.grad(along), in_dims=(None, 0, 0))
    values = slopes.new_empty(len(inputs), network.size)
    whole = slopes.new_zeros(network.size)
    at_once = max(1, AT_ONCE // network.size)
    for k in range(0, len(inputs), at_once):
        part = slice(k, k + at_once)
        with warnings.catch_warnings():  # of what torch does not vectorize, it is said, once
            warnings.simplefilter("ignore")
            pieces = each(point, inputs[part], slopes[part])
        rows = [pieces[name].flatten().view(len(values[part]), -1) for name in point]
        torch.cat(rows, 1, out=values[part])
        with torch.enable_grad():
            total = (network(inputs[part]) * slopes[part]).sum()
        whole += flatten(network.gradients(total))
    if held is not None:
        values[:, held] = 0.0
        whole[held] = 0.0
    return _checked(GaussNewton.of(StoredRows(values)), whole)


def _checked(rows: GaussNewton, whole: Tensor) -> GaussNewton | None:
    """The rows, if their sum is this gradient of the model."""
    wrong = torch.dist(rows.combined(np.ones(len(rows.gram))), whole)
    return rows if wrong <= RIGHT * whole.norm() else None
