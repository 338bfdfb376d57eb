"""The training loss as a deterministic function of one flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.data import pairs
from isoloss.errors import InputError
from isoloss.flat import FlatNetwork, Model, flatten, trainable
from isoloss.losses import Loss, get_loss, get_metric

IMAGES_AT_ONCE = 50
DTYPES = (torch.float32, torch.float64)
DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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
        chunk_size: Examples evaluated at once, summed in order. None takes each pair whole, but
            images (inputs of four dimensions) on a CPU by 50: faster, and bounded in memory.

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
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size={chunk_size} is not possible; give at least 1")
        if dtype not in (None, *DTYPES):
            raise InputError(f"dtype={dtype} is not possible; use torch.float32 or torch.float64")
        self._model = model
        self._parameters = parameters
        self._pairs = pairs(data)
        self._loss = get_loss(loss)
        self._metric = get_metric(metric, loss)
        self._network = FlatNetwork(model, parameters, dtype=dtype, device=device)
        if self._network.dtype not in DTYPES:
            raise InputError(
                f"the model's parameters are {self._network.dtype}, too coarse to hold a level; "
                f"give dtype=torch.float32 or torch.float64"
            )
        self.size = self._network.size
        self.dtype = self._network.dtype
        self.device = self._network.device
        self._chunk_size = chunk_size
        self._chunks = [
            chunk for x, y in self._pairs for chunk in self._cut(self._place(x), self._place(y))
        ]
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
                    values = measure(outputs, targets)
                    _per_example("metric", values, targets)
                    metric += values.sum(dtype=torch.float64).item()
        return loss / self.examples, metric / self.examples

    def example_losses(self, theta: Tensor) -> Tensor:
        """The loss of each example at a point.

        Args:
            theta: Shape (size,).

        Returns:
            Shape (examples,), float64, in the order of the data.
        """
        with torch.no_grad():
            self._network.load(theta)
            return torch.cat([self._losses(self._network(x), y).double() for x, y in self._chunks])

    def with_dtype(self, dtype: torch.dtype) -> Problem:
        """The same problem computed in another type, for example to check a walk in float64.

        Args:
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new problem of the same model and data.
        """
        other = Problem(
            self._network.model,
            self._loss,
            self._pairs,
            parameters=self._parameters,
            dtype=dtype,
            device=self.device,
            chunk_size=self._chunk_size,
        )
        other._model = self._model
        other._metric = self._metric
        return other

    def check_deterministic(self, theta: Tensor) -> None:
        """Evaluate the loss twice and insist that it comes out the same.

        Args:
            theta: Shape (size,).

        Raises:
            InputError: It does not; the text names the layers in training mode that can be why.
        """
        averaging = self._in_training(BATCH_NORM)
        if averaging:
            raise InputError(
                f"the loss is not a function of the parameters alone, since batch statistics go "
                f"into it: in training mode are {averaging}; call model.eval()"
            )
        with torch.random.fork_rng():
            first, second = self.loss(theta).item(), self.loss(theta).item()
        if first == second or (math.isnan(first) and math.isnan(second)):
            return
        dropping = self._in_training(DROPOUT)
        cause = f": in training mode are {dropping}" if dropping else ""
        raise InputError(
            f"the loss is not a function of the parameters alone: two evaluations at one point "
            f"gave {first:.9g} and {second:.9g}{cause}; call model.eval() or remove what is random"
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that make up theta, by name, in order."""
        return dict(self._network.shapes)

    @property
    def network(self) -> FlatNetwork:
        """The private copy of the model, at the point last loaded."""
        return self._network

    @property
    def chunks(self) -> Sequence[tuple[Any, Tensor]]:
        """The data in the pieces that are evaluated one after another."""
        return self._chunks

    def _in_training(self, kinds: tuple[type[nn.Module], ...]) -> str:
        model = self._network.model
        if not isinstance(model, nn.Module):
            return ""
        return ", ".join(
            f"{name or 'the model'} ({type(module).__name__})"
            for name, module in model.named_modules()
            if module.training and isinstance(module, kinds)
        )

    def _total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._losses(outputs, targets).sum(dtype=torch.float64)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._loss(outputs, targets)
        _per_example("loss", losses, targets)
        return losses

    def _differentiate(self, inputs: Any, targets: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            total = self._total(self._network(inputs), targets)
        return total.detach(), self._network.gradients(total, self._scale)

    def _cut(self, inputs: Any, targets: Tensor) -> list[tuple[Any, Tensor]]:
        if not isinstance(inputs, Tensor):
            return [(inputs, targets)]
        images = inputs.ndim == 4
        size = self._chunk_size
        if size is None:
            size = IMAGES_AT_ONCE if images and self.device.type == "cpu" else len(targets)
        if images:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        size = max(size, 1)
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    def _place(self, data: Any) -> Any:
        if not isinstance(data, Tensor):
            return data
        return data.to(self.device, self.dtype if data.is_floating_point() else None)


def _per_example(what: str, values: Tensor, targets: Tensor) -> None:
    if values.shape != targets.shape[:1]:
        raise InputError(
            f"the {what} gave shape {tuple(values.shape)} for {len(targets)} examples; it must "
            f"give one value per example (reduction='none'), shape ({len(targets)},)"
        )
