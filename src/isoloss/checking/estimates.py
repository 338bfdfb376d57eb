"""Weights that are divided by what training estimates and an evaluation keeps."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from isoloss.checking.words import listed, named
from isoloss.data import random_state_kept
from isoloss.problem import Problem, inside


def warn_of_estimates(problem: Problem) -> None:
    """Say which layers these are, and what to do."""
    model = inside(problem).network.model
    parts = list(model.named_modules()) if isinstance(model, nn.Module) else []
    found = [named(name, part) for name, part in parts if not part.training and _estimates(part)]
    if found:
        warnings.warn(
            f"{listed(found)} divides its weight by a norm that training estimates and evaluation "
            f"mode keeps as it was: a walk lowers R by letting the true norm grow; make the weight "
            f"a plain parameter first, by torch.nn.utils.remove_spectral_norm(layer) or "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
            stacklevel=5,
        )


def _estimates(part: nn.Module) -> bool:
    if any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values()):  # pyright: ignore[reportPrivateUsage]
        return True
    trained = any(parameter.requires_grad for parameter in part.parameters())
    if not isinstance(part, ParametrizationList) or not trained:
        return False
    other = copy.deepcopy(part).train()
    with torch.no_grad(), random_state_kept():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
        other()
    before, after = dict(part.named_buffers()), dict(other.named_buffers())
    return any(not torch.equal(before[name], after[name]) for name in before)
