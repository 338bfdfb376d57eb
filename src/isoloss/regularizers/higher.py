"""What regularizers made of derivatives of the loss or the model share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from isoloss.errors import DerivativeError, one_line
from isoloss.evaluation.arithmetic import reproducible, twice_differentiable
from isoloss.evaluation.second import undifferentiable
from isoloss.problem import Problem


@contextmanager
def differentiating(problem: Problem, regularizer: str) -> Generator[None]:
    """Kernels that can be differentiated again and again, and a sentence where there is none.

    Args:
        problem: Says where the evaluation is.
        regularizer: Who asks, for the error.

    Yields:
        Nothing; differentiate within.

    Raises:
        DerivativeError: An operation of the model cannot be differentiated that often.
    """
    device = problem.device
    try:
        with torch.enable_grad(), reproducible(device), twice_differentiable(device), _PlainNorms():
            yield
    except RuntimeError as error:
        if not undifferentiable(error):
            raise
        raise DerivativeError(
            f"{regularizer} needs higher derivatives, which an operation of the model does not "
            f"have ({one_line(error)}); write that operation out in plain ones"
        ) from error


class _PlainNorms(TorchFunctionMode):
    """Layer and instance norms in plain operations.

    Torch's own have third derivatives that are wrong without a word (seen in 2.13; against finite
    differences, in tests/regularizers/test_derivatives.py).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in {functional.layer_norm, torch.layer_norm}:
            return _layer_norm(*args, **given)
        if func is functional.instance_norm:
            return _instance_norm(*args, **given)
        return func(*args, **given)


def _layer_norm(
    input: Tensor,  # noqa: A002  (torch's name, by which it may be given)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    del cudnn_enable
    normed = _normed(input, range(-len(normalized_shape), 0), eps)
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    del momentum
    beside = (1, -1, *[1] * (input.ndim - 2))
    if use_input_stats or running_mean is None or running_var is None:
        normed = _normed(input, range(2, input.ndim), eps)
    else:
        normed = (input - running_mean.view(beside)) / (running_var.view(beside) + eps).sqrt()
    scaled = normed if weight is None else normed * weight.view(beside)
    return scaled if bias is None else scaled + bias.view(beside)


def _normed(values: Tensor, over: range, eps: float) -> Tensor:
    away = values - values.mean(list(over), keepdim=True)
    return away / (away.square().mean(list(over), keepdim=True) + eps).sqrt()
