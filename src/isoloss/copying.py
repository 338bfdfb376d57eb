"""A private copy of a user's model, whatever it keeps of earlier computations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isoloss.errors import InputError, one_line


class _detached(TorchFunctionMode):  # noqa: N801  # a context, as torch names its own
    """Deep copies of tensors that a model keeps from earlier computations are leaves."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            # were it used, it would show as a leaf that is none of the parameters
            return args[0].detach().clone().requires_grad_()
        return func(*args, **(kwargs or {}))


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, made ready to be differentiated, twice too where torch can."""
    try:
        with _detached(), torch.no_grad():
            module = copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({one_line(error)}); take out what it keeps beside its "
            f"parameters and buffers, or pass a function of (parameters, inputs) and parameters="
        ) from error
    for mine, given in zip(module.parameters(), model.parameters(), strict=True):
        if mine is given:
            raise InputError(
                f"the model cannot be copied: deepcopy of {type(model).__name__} gives its own "
                f"parameters; make it copy them, or pass a function and parameters="
            )
        mine.requires_grad_(given.requires_grad)  # which torch.jit forgets
    for part in module.modules():
        if isinstance(part, nn.RNNBase) and not part.training:
            # cuDNN differentiates recurrent layers in training mode alone, where they differ from
            # evaluation by their dropout
            part.dropout = 0.0
            part.training = True
    return module
