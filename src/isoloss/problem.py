"""The training loss as a deterministic function of one flat parameter vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from isoloss.data import Chunk, Chunks
from isoloss.errors import InputError
from isoloss.evaluation.arithmetic import channels_last_is_safe, reproducible
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.choice import Evaluation, evaluation_of, measured_size
from isoloss.evaluation.examples import per_example, weighted_sum
from isoloss.evaluation.look import suspect
from isoloss.flat import FlatNetwork, Model, flatten, trainable
from isoloss.losses import Loss, NamedLoss, get_loss, get_metric

DTYPES = (torch.float32, torch.float64)


class Problem:
    """A training loss L(theta): the mean of a per-example loss over one fixed training set.

    The model is copied: its parameters, buffers, mode and gradients stay as they are. Theta is the
    flat vector of its trainable parameters in the order of `model.named_parameters()`; a parameter
    used in several places is there once, a frozen one acts but is no part of it.

    Args:
        model: A `torch.nn.Module`, or a function of (dict of parameters, inputs). A module gets a
            tuple or list of inputs as its arguments and a dict as its keyword arguments (one that
            takes these whole: a tuple of one), a function gets inputs whole.
        loss: `"cross_entropy"`, `"mse"`, `"bce_with_logits"`, `"huber"`, one of these with options
            such as `isoloss.losses.CrossEntropy(label_smoothing=0.1)`, or a function of (outputs,
            targets) giving one loss per example, shape (n,).
        data: A pair (inputs, targets), each a tensor or a structure of tensors (tuples, lists,
            dicts, nested) with the examples along the first axis of all; or an iterable of such
            pairs, always the same. Tensors, lists and generators are kept; a DataLoader is read
            again at every evaluation, one batch in memory at a time, so give `list(loader)` where
            the batches fit. A tuple of two with a tuple or list of targets is two pairs: write
            `[(inputs, targets)]`.
        weights: How much each example counts in the mean, shape (examples,), in the order of the
            data, not negative; None for all alike.
        metric: `"accuracy"`, `"binary_accuracy"`, `"mse"`, `"mae"`, a function of (outputs,
            targets) giving one value per example, or None for the one that goes with the loss.
        parameters: For a model that is a function: its tensors by name, the start of a walk.
        dtype: `torch.float32` or `torch.float64`; None takes the type of the parameters.
        device: None takes where the parameters are.
        chunk_size: Examples evaluated at once, summed in order, which bounds the memory. None takes
            images (inputs of four dimensions) by 50 on a CPU and 250 elsewhere, all else by 1000;
            for the gradient on a CPU, another size where that is measured to be faster.

    Attributes:
        size: Number of parameters.
        examples: Number of training examples.
        dtype: Type of theta.
        device: Device of theta.
        evaluations: Number of evaluations of the loss and its gradient so far.
        network: The private copy of the model, over one flat vector.
        chunks: The training set, chunk by chunk.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """

    def __init__(
        self,
        model: Model,
        loss: str | Loss = "cross_entropy",
        data: Any = (),
        *,
        weights: Tensor | None = None,
        metric: str | Loss | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is not None and (not isinstance(chunk_size, Integral) or chunk_size < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"chunk_size={chunk_size} is not possible; give a whole number of at least 1"
            )
        if dtype not in (None, *DTYPES):
            raise InputError(f"dtype={dtype} is not possible; use torch.float32 or torch.float64")
        self._model = model
        self._parameters = parameters
        self._loss = get_loss(loss)
        self._metric = get_metric(metric, loss)
        self.network = FlatNetwork(model, parameters, dtype=dtype, device=device)
        if self.network.dtype not in DTYPES:
            raise InputError(
                f"the model's parameters are {self.network.dtype}, too coarse to hold a level; "
                f"give dtype=torch.float32 or torch.float64"
            )
        self.size = self.network.size
        self.dtype = self.network.dtype
        self.device = self.network.device
        self.chunks = Chunks(
            data,
            weights,
            dtype=self.dtype,
            device=self.device,
            size=chunk_size,
            check_targets=self._loss.check_targets if isinstance(self._loss, NamedLoss) else None,
            channels_last=channels_last_is_safe(self.network.model),
        )
        self.examples = self.chunks.examples
        self._evaluation = evaluation_of(self.network, self.chunks, self._loss)
        self._gradient: Evaluation | None = None
        self._chunk_size = chunk_size
        self._looked = False  # whether products with the Hessian are right
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
        self.network.load(theta)
        return self._evaluation.loss()

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss and its gradient at a point; counts as one evaluation.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64, and its gradient, shape (size,), of the
            problem's type. Both are new tensors. Chunks of data are summed in their order.
        """
        self.evaluations += 1
        self.network.load(theta)
        if self._gradient is None:
            self._gradient = self._choose()
        return self._gradient.loss_and_grad()

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the training loss at a point, times a vector; exact, chunk by chunk.

        Costs some three evaluations and twice their memory; does not count as one. Where the model
        has a `torch.autograd.Function` of its own, the first product is compared with differences
        of the gradient, on a few examples.

        Args:
            theta: Shape (size,).
            vector: Shape (size,), of the problem's type.

        Returns:
            Shape (size,), of the problem's type; a new tensor.

        Raises:
            InputError: A shape is another, or an operation of the model cannot be differentiated
                twice; where that is a function of the model's own and the product would be wrong,
                `DerivativeError`.
        """
        if vector.shape != (self.size,):
            raise InputError(
                f"vector has shape {tuple(vector.shape)}, the problem has {self.size} parameters; "
                f"give a flat vector in the order of model.named_parameters()"
            )
        if not self._looked:
            found = suspect(self, theta)
            if found is not None:
                found.check_product()
            self._looked = True
        self.network.load(theta)
        return self._evaluation.hvp(vector.to(self.device, self.dtype))

    def autograd(self, theta: Tensor) -> Autograd:
        """Evaluation chunk by chunk at a point, to be differentiated further by the caller.

        Args:
            theta: Shape (size,).

        Returns:
            Gives outputs and losses of each of `chunks`, in the graph of the parameters of
            `network`, until that is loaded anew.
        """
        self.network.load(theta)
        return Autograd(self.network, self.chunks, self._loss)

    def first(self, count: int, dtype: torch.dtype) -> Problem:
        """The same problem of a few of its examples, all counted alike.

        Args:
            count: How many; of the first chunk, so no more than that has.
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new problem.
        """
        few = next(iter(self.chunks)).first(count)
        return Problem(
            self.network.model,
            self._loss,
            [(few.inputs, few.targets)],
            parameters=self._parameters,
            dtype=dtype,
            device=self.device,
        )

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and metric at a point, from one pass over the data.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss and mean metric; the metric is NaN where there is none.
        """
        measure = self._metric
        loss, metric = 0.0, math.nan if measure is None else 0.0
        with torch.no_grad(), reproducible(self.device):
            self.network.load(theta)
            for chunk in self.chunks:
                outputs = self._evaluation.outputs(chunk)
                loss += weighted_sum(self._evaluation.losses(outputs, chunk), chunk).item()
                if measure is not None:
                    values = per_example("metric", measure(outputs, chunk.targets), chunk)
                    metric += weighted_sum(values, chunk).item()
        return loss / self.chunks.total_weight, metric / self.chunks.total_weight

    def example_losses(self, theta: Tensor) -> Tensor:
        """The loss of each example at a point, before any weights.

        Args:
            theta: Shape (size,).

        Returns:
            Shape (examples,), float64, in the order of the data.
        """
        with torch.no_grad(), reproducible(self.device):
            self.network.load(theta)
            return torch.cat([self.losses_of(chunk) for chunk in self.chunks])

    def with_dtype(self, dtype: torch.dtype) -> Problem:
        """The same problem computed in another type, for example to check a walk in float64.

        Args:
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new problem of the same model and data, which it converts chunk by chunk.
        """
        other = copy.copy(self)
        other.network = FlatNetwork(
            self.network.model, self._parameters, dtype=dtype, device=self.device
        )
        other.chunks = self.chunks.recast(dtype)
        other._evaluation = evaluation_of(other.network, other.chunks, self._loss)
        other._gradient = None
        other.dtype = dtype
        other.evaluations = 0
        return other

    def with_chunk_size(self, size: int | None) -> Problem:
        """The same problem with its gradient computed so many examples at once.

        Args:
            size: As `chunk_size` of another such problem says; None leaves the choice.

        Returns:
            A problem that gives the bits that the other gave.
        """
        if size is None:
            return self
        other = copy.copy(self)
        other._chunk_size = size
        recut = self.chunks.recut(size) if self.chunks.kept else self.chunks
        other._gradient = evaluation_of(self.network, recut, self._loss)
        return other

    def losses_of(self, chunk: Chunk) -> Tensor:
        """The losses of a few examples at the point last evaluated.

        Args:
            chunk: Any examples, as those of `chunks`.

        Returns:
            Shape (chunk.examples,), float64.
        """
        with torch.no_grad(), reproducible(self.device):
            return self._evaluation.losses(self._evaluation.outputs(chunk), chunk).double()

    @property
    def chunk_size(self) -> int | None:
        """Examples whose gradient is computed at once; given to another `Problem`, the same bits.

        As given; else as measured on this machine at the first gradient, which this may be. None
        where nothing was given and there is nothing to choose: each chunk has the usual size.
        """
        if self._gradient is None:
            self.network.load(self.current())
            self._gradient = self._choose()
        return self._chunk_size

    @property
    def example_loss(self) -> Loss:
        """The per-example loss, as it was given or named."""
        return self._loss

    @property
    def example_metric(self) -> Loss | None:
        """The per-example metric, likewise; None where there is none."""
        return self._metric

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that make up theta, by name, in order."""
        return dict(self.network.shapes)

    def _choose(self) -> Evaluation:
        if self._chunk_size is None:
            self._chunk_size = measured_size(self.network, self.chunks, self._loss)
            if self._chunk_size is not None:
                chunks = self.chunks.recut(self._chunk_size)
                return evaluation_of(self.network, chunks, self._loss)
        return self._evaluation
