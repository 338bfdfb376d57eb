"""What an evaluation leaves behind, in the model or in its inputs, for the next one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoloss.data import leaves
from isoloss.errors import InputError
from isoloss.evaluation import Autograd
from isoloss.evaluation.differences import random_direction
from isoloss.flat import FlatNetwork, Model, fixed, same
from isoloss.problem import Problem, inside

FEW = 4
"""Examples that are enough to see it."""

BESIDE = 1e-2
"""How far from the start the model is evaluated again, as a share of |theta|."""

ROUNDINGS = 1e3


def versions(problem: Problem) -> list[tuple[str, Tensor, int]]:
    """The inputs that are kept from one evaluation to the next, and how often each was written."""
    chunks = inside(problem).chunks
    named = [each for chunk in chunks for each in leaves(chunk.inputs, "inputs")] * chunks.kept
    return [(name, t, t._version) for name, t in named if not t.is_inference()]


def check_inputs(before: list[tuple[str, Tensor, int]]) -> None:
    """Insist that an evaluation left its inputs as they were."""
    for name, tensor, version in before:
        if tensor._version != version:
            raise InputError(
                f"the model changes its {name} in place, so that the next evaluation has other "
                f"ones; let forward work on a copy, x = x.clone()"
            )


def check_fresh(problem: Problem, theta: Tensor) -> None:
    """Insist that the model gives at other weights what a copy does that was never evaluated."""
    own = inside(problem)
    if not isinstance(own.model, nn.Module) or not _as_it_was(own.model, own.network.model):
        return
    try:
        fresh = FlatNetwork(own.model, dtype=problem.dtype, device=problem.device)
    except InputError:  # it holds by now what cannot be copied
        return
    v = random_direction(theta, 4)
    beside = theta + BESIDE * (theta.norm() or 1.0) / v.norm() * v
    few = own.chunks.few(FEW, problem.dtype)
    used, new = (
        Autograd(network, few, own.loss).loss(beside).item() for network in (own.network, fresh)
    )
    if abs(used - new) > ROUNDINGS * torch.finfo(problem.dtype).eps * abs(new):
        raise InputError(
            f"the loss is not a function of the parameters alone: at other weights the model gives "
            f"{used:.6g}, and {new:.6g} where it was never evaluated before; compute in every "
            f"forward what it keeps of earlier weights, or, if it is made once from data, call the "
            f"model on its inputs before making the Problem"
        )


def _as_it_was(model: nn.Module, copy: Model) -> bool:
    """Whether a model still has the modes and the buffers that the problem's copy has."""
    parts = copy.modules() if isinstance(copy, nn.Module) else ()
    for now, before in zip(model.modules(), parts, strict=False):
        if now.training != before.training and not isinstance(now, nn.RNNBase):
            return False
    kept = fixed(copy)
    return all(same(kept[name], now) for name, now in fixed(model).items() if name in kept)
