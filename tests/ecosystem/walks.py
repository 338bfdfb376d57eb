"""A walk of somebody's model, held against plain torch in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tests.problems import snapshot
from torch import Tensor, nn

import isoloss

Plain = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a model on its data, as its user would have written it for training."""

ROUNDING = 1e-4
"""Relative difference between float32 and float64 that is let pass: a tenth of the default rtol."""


def walked(
    model: nn.Module,
    loss: Any,
    data: Any,
    plain: Plain,
    *,
    evaluations: int = 40,
    rtol: float = 1e-3,
    **settings: Any,
) -> isoloss.Path:
    """Walk from a model's weights; the model holds the last point afterwards.

    Loss and gradient at the start, and the loss at the end, are those of `plain` on a float64 copy
    of the model; the squared norm is smaller; nothing of the model changes before the point is
    loaded, and all of its `state_dict` is that of the path then.
    """
    before, exact = snapshot(model), in_double(data)
    problem = isoloss.Problem(model, loss, data, **settings)
    value, slope, norm = evaluated(model, plain, exact)
    found, grad = problem.loss_and_grad(problem.current())
    assert math.isclose(found.item(), value, rel_tol=ROUNDING)
    assert (grad.double() - slope).norm() <= ROUNDING * slope.norm()
    stop = isoloss.Stop(evaluations=evaluations)
    path = isoloss.traverse(problem, rtol=rtol, stop=stop, progress=False)
    assert snapshot(model) == before
    assert math.isclose(path.level, value, rel_tol=ROUNDING)
    path.load_into(model)
    end, _, shorter = evaluated(model, plain, exact)
    assert abs(math.log(end / path.level)) <= math.log1p(rtol) + ROUNDING
    assert shorter < norm
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in path.state_dict().items())
    return path


def evaluated(model: nn.Module, plain: Plain, exact: Any) -> tuple[float, Tensor, float]:
    """Loss, flat gradient and squared norm of a model by plain torch in float64."""
    double = copy.deepcopy(model).double()
    parameters = [p for p in double.parameters() if p.requires_grad]
    value = plain(double, exact)
    slopes = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    norm = sum(p.detach().square().sum().item() for p in parameters)
    return value.item(), torch.cat([slope.reshape(-1) for slope in slopes]), norm


def in_double(tree: Any) -> Any:
    """The same structure, graphs included, with its real numbers in float64."""
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {key: in_double(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(in_double(value) for value in tree)
    return tree.clone().apply(in_double)  # a graph


def trained(
    model: nn.Module, plain: Plain, data: Any, *, steps: int = 40, lr: float = 1e-2
) -> nn.Module:
    """A model after some steps of Adam in the mode it is in, in eval mode then."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        plain(model, data).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()
