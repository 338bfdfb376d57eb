"""The training loss as a deterministic function of one flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.errors import InputError
from isoloss.flat import FlatNetwork, Model, flatten, trainable
from isoloss.losses import Loss, get_loss, get_metric

RANDOM_IN_TRAINING = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)


class Problem:
    """A training loss L(theta): the mean of a per-example loss over one fixed training set.

    The model is copied: its parameters, buffers, mode and gradients stay as they are. Theta is the
    flat vector of its trainable parameters in the order of `model.named_parameters()`.

    Args:
        model: A `torch.nn.Module`, or a function of (dict of parameters, inputs).
        loss: `"cross_entropy"`, `"mse"`, or a function of (outputs, targets) giving one loss per
            example, shape (n,).
        data: A pair of tensors (inputs, targets), or an iterable of such pairs, always the same;
            it is evaluated pair by pair, in that order.
        metric: `"accuracy"`, `"mse"`, a function of (outputs, targets) giving one value per
            example, or None for the one that goes with the loss.
        parameters: For a model that is a function: its tensors by name, the start of a walk.
        dtype: `torch.float32` or `torch.float64`; None takes the type of the parameters.
        device: None takes where the parameters are.

    Attributes:
        size: Number of parameters.
        examples: Number of training examples.
        dtype: Type of theta.
        device: Device of theta.
        evaluations: Number of evaluations of the loss and its gradient so far.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """

    def __init__(
        self,
        model: Model,
        loss: str | Loss = "cross_entropy",
        data: tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]] = (),
        *,
        metric: str | Loss | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(f"dtype={dtype} is not possible; use torch.float32 or torch.float64")
        self._model = model
        self._parameters = parameters
        self._loss = get_loss(loss)
        self._metric = get_metric(metric, loss)
        self._network = FlatNetwork(model, parameters, dtype=dtype, device=device)
        self.size = self._network.size
        self.dtype = self._network.dtype
        self.device = self._network.device
        self._chunks = [(self._place(x), self._place(y)) for x, y in _pairs(data)]
        self.examples = sum(len(y) for _, y in self._chunks)
        if self.examples == 0:
            raise InputError("data holds no example; give a pair of tensors (inputs, targets)")
        self._scale = torch.tensor(1 / self.examples, dtype=torch.float64, device=self.device)
        self.evaluations = 0

    def current(self) -> Tensor:
        """The model's parameters as they are now, as one flat vector.

        Returns:
            Shape (size,), a copy of the problem's type on its device.
        """
        named = trainable(self._model, self._parameters)
        return flatten(list(named.values())).to(self.device, self.dtype)

    def loss(self, theta: Tensor) -> Tensor:
        """The training loss at a point, without its gradient.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64.
        """
        with torch.no_grad():
            self._network.load(theta)
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for inputs, targets in self._chunks:
                total += self._total(self._network(inputs), targets)
        return total * self._scale

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss and its gradient at a point; counts as one evaluation.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64, and its gradient, shape (size,), of the
            problem's type. Both are new tensors. Pairs of data are summed in their order.
        """
        self.evaluations += 1
        self._network.load(theta)
        first, *others = self._chunks
        value, pieces = self._differentiate(*first)
        grad = flatten(pieces)
        views = self._network.split(grad) if others else []
        for chunk in others:
            total, pieces = self._differentiate(*chunk)
            value = value + total
            for view, piece in zip(views, pieces, strict=True):
                view.add_(piece)
        return value * self._scale, grad

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and metric at a point, from one pass over the data.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss and mean metric; the metric is NaN where there is none.
        """
        measure = self._metric
        loss, metric = 0.0, math.nan if measure is None else 0.0
        with torch.no_grad():
            self._network.load(theta)
            for inputs, targets in self._chunks:
                outputs = self._network(inputs)
                loss += self._total(outputs, targets).item()
                if measure is not None:
                    metric += measure(outputs, targets).sum(dtype=torch.float64).item()
        return loss / self.examples, metric / self.examples

    def check_deterministic(self, theta: Tensor) -> None:
        """Evaluate the loss twice and insist that it comes out the same.

        Args:
            theta: Shape (size,).

        Raises:
            InputError: It does not; the text names the layers in training mode that can be why.
        """
        with torch.random.fork_rng():
            first, second = self.loss(theta).item(), self.loss(theta).item()
        if first == second or (first != first and second != second):
            return
        suspects = []
        if isinstance(self._model, nn.Module):
            suspects = [
                f"{name or 'the model'} ({type(module).__name__})"
                for name, module in self._model.named_modules()
                if module.training and isinstance(module, RANDOM_IN_TRAINING)
            ]
        cause = f": in training mode are {', '.join(suspects)}" if suspects else ""
        raise InputError(
            f"the loss is not a function of the parameters: two evaluations at one point gave "
            f"{first:.9g} and {second:.9g}{cause}; call model.eval() or remove what is random"
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that make up theta, by name, in order."""
        return dict(self._network.shapes)

    def _total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._loss(outputs, targets)
        if losses.shape != targets.shape[:1]:
            raise InputError(
                f"the loss gave shape {tuple(losses.shape)} for {len(targets)} examples; it must "
                f"give one loss per example (reduction='none'), shape ({len(targets)},)"
            )
        return losses.sum(dtype=torch.float64)

    def _differentiate(self, inputs: Any, targets: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            total = self._total(self._network(inputs), targets)
        return total.detach(), self._network.gradients(total, self._scale)

    def _place(self, data: Any) -> Any:
        if not isinstance(data, Tensor):
            return data
        return data.to(self.device, self.dtype if data.is_floating_point() else None)


def _pairs(data: tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]]) -> list[tuple[Any, Tensor]]:
    whole = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
    chunks: list[Any] = [data] if whole else list(data)
    for chunk in chunks:
        if len(chunk) != 2 or not isinstance(chunk[1], Tensor):
            raise InputError(
                "data must be a pair of tensors (inputs, targets) or an iterable of such pairs"
            )
        inputs, targets = chunk
        if isinstance(inputs, Tensor) and len(inputs) != len(targets):
            raise InputError(
                f"data has {len(inputs)} inputs and {len(targets)} targets; give one each"
            )
    return chunks
