"""A private copy of a user's model, whatever it keeps of earlier computations."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from isoloss.errors import InputError, one_line

WRAPPERS = {"DistributedDataParallel", "_FabricModule"}
"""Modules around a model for several processes, whose hooks do not see `torch.autograd.grad`."""

SHARDED = {"FullyShardedDataParallel", "DTensor"}
"""Modules and parameters of which each process has a part."""


def unwrapped(model: Any) -> Any:
    """The plain module within what torch, Accelerate or Fabric wrapped around it."""
    while any(kind.__name__ in WRAPPERS for kind in type(model).__mro__):
        model = model.module
    parts = [*model.modules(), *model.parameters()] if isinstance(model, nn.Module) else []
    if SHARDED & {type(part).__name__ for part in parts}:
        raise InputError(
            "the model's parameters are sharded over processes (FSDP, tensor parallelism), and a "
            "walk needs each of them whole on every one; give a plain copy with the gathered "
            "state_dict"
        )
    return model


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
        if func is Tensor.__deepcopy__ and args[0].layout != torch.strided:
            return args[0].clone()  # which torch cannot copy itself for all layouts
        return func(*args, **(kwargs or {}))


def check_apart(model: nn.Module) -> None:
    """Insist on parameters that share memory with nothing, which a copy would take apart."""
    named = [*model.named_parameters(), *model.named_buffers()]
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + _length(t) * t.element_size(), name, t)
        for name, t in named
        if not is_lazy(t) and t.layout == torch.strided and not t.is_meta and t.numel()
    )
    for (_, end, name, one), (begin, _, other, two) in itertools.pairwise(spans):
        if begin < end and (one.requires_grad or two.requires_grad) and _share(one, two):
            raise InputError(
                f"{name!r} and {other!r} of the model share memory without being one parameter, so "
                f"that a walk would move them apart; tie them (second.weight = first.weight), or "
                f"give each its own (.clone())"
            )
    for name, parameter in model.named_parameters():
        expanded = not is_lazy(parameter) and _length(parameter) < parameter.numel()
        if expanded and parameter.requires_grad:
            raise InputError(
                f"several entries of parameter {name!r} share memory (expand), so that they cannot "
                f"be written one by one; give it its own, nn.Parameter(tensor.clone())"
            )


def _length(tensor: Tensor) -> int:
    """Entries from the first in memory to the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _share(one: Tensor, two: Tensor) -> bool:
    if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr():
        return False
    shift = (two.data_ptr() - one.data_ptr()) // one.element_size()
    places = torch.arange(max(_length(one), shift + _length(two)), device="cpu")
    return bool(
        torch.isin(
            places.as_strided(one.shape, one.stride()),
            places.as_strided(two.shape, two.stride(), shift),
        ).any()
    )


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
        if isinstance(part, nn.RNNBase):  # cuDNN copies them at each call: theta is in one piece
            warnings.filterwarnings("ignore", "RNN module weights are not part of single")
    return module
