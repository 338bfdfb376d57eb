"""The loss and its derivatives by torch's automatic differentiation: right for every model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.data import Chunk, Chunks, leaves, map_tensors
from isoloss.errors import DerivativeError, InputError, kind, one_line, placed
from isoloss.evaluation.arithmetic import (
    WRONG_THRICE,
    Rewritten,
    reproducible,
    twice_differentiable,
)
from isoloss.evaluation.differences import TOLERANCE, mismatch, own_functions, random_direction
from isoloss.evaluation.failures import explained
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss, ModelLoss

TYPES = re.compile(r"\bd?types?\b|not implemented for")
"""In torch's errors on tensors of types that an operation does not take."""
REENTRANT = "use_reentrant=True"
"""In torch's error on a checkpoint of activations that takes `backward` alone."""
KEPT_GRAPH = "backward through the graph a second time"
"""In torch's error on a graph that was made in an earlier evaluation."""
UNDIFFERENTIABLE = ("derivative", "double backward", "differentiate twice", REENTRANT)
"""In torch's errors on operations that cannot be differentiated again."""
FEW = 4
"""Examples on which derivatives are checked: few, so that no kink lies within the least step."""

Term = Callable[["Autograd", Chunk], Iterator[Tensor]]
"""Gives, one after another, differentiable numbers whose sum over the chunks is a quantity."""


class Autograd:
    """Evaluates the loss in the memory of one chunk."""

    def __init__(
        self, network: FlatNetwork, chunks: Chunks, loss: Loss, precision: str = "exact"
    ) -> None:
        self.network = network
        self.chunks = chunks
        self._loss = loss
        self._scale = torch.tensor(1 / chunks.divisor, dtype=torch.float64, device=network.device)
        self._precision = precision
        self._checked: set[str] = set()

    def on(self, chunks: Chunks) -> Autograd:
        """The same network on other inputs, for what it gives, without a loss."""
        return Autograd(self.network, chunks, _outputs)

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it."""
        self.network.load(theta)
        with self._kernels():
            for chunk in self.chunks:
                yield chunk, self.detached(chunk)

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64."""
        self.network.load(theta)
        total = torch.zeros((), dtype=torch.float64, device=self.network.device)
        with self._kernels():
            for chunk in self.chunks:
                losses = self.losses(self.detached(chunk), chunk).detach()
                total += weighted_sum(losses, chunk)
        return total * self._scale

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient; summed in the chunks' order."""
        self.network.load(theta)
        with self._kernels():
            chunks = iter(self.chunks)
            value, pieces = self._differentiate(next(chunks))
            grad = flatten(pieces)
            views = self.network.layout.split(grad)
            for chunk in chunks:
                total, pieces = self._differentiate(chunk)
                value = value + total
                for view, piece in zip(views, pieces, strict=True):
                    view.add_(piece)
        return value * self._scale, grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector; twice the memory of a gradient."""
        self._check(theta)
        self.network.load(theta)
        directions = self.network.layout.split(vector)
        product = torch.zeros_like(vector)
        kernels = twice_differentiable(self.network.device)
        with torch.enable_grad(), self._kernels(), kernels:
            for chunk in self.chunks:
                product += flatten(self._second(chunk, directions))
        return product

    def sum_of(self, theta: Tensor, name: str, term: Term) -> tuple[Tensor, Tensor]:
        """A quantity made of derivatives of the loss or the model, and its flat gradient."""
        self._check(theta, name, term)
        return self._sum_of(theta, name, term)

    def of_outputs(self, theta: Tensor, function: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        """A function of the outputs for all examples together, shape (), and its flat gradient.

        Of several chunks, outputs alone are kept, and each is differentiated in a second pass."""
        self.network.load(theta)
        with self._kernels():
            first, *others = self.chunks
            if not others:
                value, pieces = self._slope(lambda: function(self.forward(first)))
                return value, flatten(pieces)
            several = [self.detached(chunk) for chunk in (first, *others)]
            by: list[Tensor] = []
            with torch.enable_grad():
                value = function(_joined(several, self.chunks, by))
                slopes = torch.autograd.grad(value, by, allow_unused=True, materialize_grads=True)
            grad, start = torch.zeros_like(theta), 0
            for chunk in (first, *others):
                along = [slope[start : start + chunk.examples] for slope in slopes]
                grad += flatten(self._slope(lambda c=chunk, s=along: self._along(c, s))[1])
                start += chunk.examples
            return value.detach(), grad

    def _along(self, chunk: Chunk, slopes: Sequence[Tensor]) -> Tensor:
        """The inner product of a chunk's outputs with a slope for each."""
        outputs = [t for _, t in leaves(self.forward(chunk), "") if t.is_floating_point()]
        pairs = zip(outputs, slopes, strict=True)
        return torch.stack([(output * slope).sum() for output, slope in pairs]).sum()

    def sample(self, count: int, theta: Tensor) -> tuple[Autograd, Tensor]:
        """The same of a few examples, and theta, in float64 if the model can be computed in it."""
        for dtype in (torch.float64, self.network.dtype):
            network, chunks = self.network.in_dtype(dtype), self.chunks.few(count, dtype)
            few, at = Autograd(network, chunks, self._loss), theta.to(dtype)
            try:
                few.loss_and_grad(at)
                return few, at
            except Exception:  # the model holds float32 tensors of its own
                if dtype == self.network.dtype:
                    raise
        raise AssertionError

    def forward(self, chunk: Chunk, *, by_inputs: bool = False) -> Any:
        """What the model gives for a chunk at the point loaded; `by_inputs` says that these are
        to be differentiated by. Else they are the model's own: it may ask for their gradient."""
        inputs = chunk.inputs if by_inputs else map_tensors(Tensor.detach, chunk.inputs)
        if isinstance(self._loss, ModelLoss):
            return losses_of(self._loss, self.network, inputs)
        alone = chunk.targets is None and self._loss is not _outputs
        with explained(lambda error: _on_inputs(inputs, self.network.dtype, error, alone=alone)):
            return self.network(inputs)

    def detached(self, chunk: Chunk) -> Any:
        """The same, computed as for a gradient (torch has other kernels without one), detached."""
        with torch.enable_grad():
            outputs = self.forward(chunk)
        return map_tensors(lambda tensor: tensor.detach(), outputs)

    def losses(self, outputs: Any, chunk: Chunk) -> Tensor:
        """The loss of each example, shape (chunk.examples,)."""
        try:
            values = _given("loss", self._loss, outputs, chunk)
        except InputError as error:
            wrong = error.__cause__
            if isinstance(wrong, TypeError) and (
                chunk.targets is None or "not callable" in str(wrong)  # it wanted a model
            ):
                raise InputError(
                    "the loss failed as a function of (outputs, targets); if it calls the model "
                    "itself, name its arguments so: lambda model, batch: ..."
                ) from wrong
            raise
        return per_example("loss", values, chunk)

    def coarse(self, theta: Tensor) -> bool:
        """Whether a network of float64 gives outputs or losses rounded to a coarser type, as the
        language models of transformers do."""
        self.network.load(theta)
        with self._kernels():
            chunk = next(iter(self.chunks.few(1, theta.dtype)))
            outputs = self.detached(chunk)
            given = [t for _, t in leaves([outputs, self.losses(outputs, chunk)], "")]
        sizes = [t.dtype.itemsize for t in given if t.is_floating_point()]
        return min(sizes, default=theta.dtype.itemsize) < theta.dtype.itemsize

    def metric(self, metric: Loss, outputs: Any, chunk: Chunk) -> Tensor:
        """A metric of each example, shape (chunk.examples,)."""
        with torch.no_grad():
            if isinstance(metric, ModelLoss):
                values = losses_of(metric, self.network, chunk.inputs)
            else:
                values = _given("metric", metric, outputs, chunk)
        return per_example("metric", values, chunk)

    def total(self, chunk: Chunk) -> Tensor:
        """The weighted sum of the losses of a chunk, shape (), float64, differentiable."""
        return weighted_sum(self.losses(self.forward(chunk), chunk), chunk)

    def _kernels(self) -> AbstractContextManager[None]:
        return reproducible(self.network.device, self._precision)

    def _differentiate(self, chunk: Chunk) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._slope(lambda: self.total(chunk), self._scale)

    def _slope(
        self, made: Callable[[], Tensor], scale: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A number computed from the network's parameters, and the gradient of scale times it."""
        with torch.enable_grad():
            total = differentiable(made())
        try:
            return total.detach(), self.network.gradients(total, scale)
        except RuntimeError as error:
            if KEPT_GRAPH in str(error):
                raise InputError(
                    "the model keeps a part of its graph from one evaluation to the next, such as "
                    "a product of weights; compute it in every forward, or detach what is kept"
                ) from error
            if REENTRANT not in str(error):
                raise
        self.network.accumulates = True
        return self._slope(made, scale)

    def _second(self, chunk: Chunk, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        total = differentiable(self.total(chunk))
        try:
            grads = self.network.gradients(total, self._scale, twice=True)
            products = [(g * v).sum() for g, v in zip(grads, directions, strict=True)]
            slope = torch.stack(products).sum()
            if not slope.requires_grad:  # the gradient is constant
                return tuple(torch.zeros_like(grad) for grad in grads)
            return self.network.gradients(slope)
        except RuntimeError as error:
            if not _undifferentiable(error):
                raise
            raise DerivativeError(
                f"the model cannot be differentiated twice {_why(error)}"
            ) from error

    def _sum_of(self, theta: Tensor, name: str, term: Term) -> tuple[Tensor, Tensor]:
        self.network.load(theta)
        value, grad = theta.new_zeros(()), torch.zeros_like(theta)
        try:
            kernels = twice_differentiable(self.network.device)
            with torch.enable_grad(), self._kernels(), kernels, Rewritten(WRONG_THRICE):
                for chunk in self.chunks:
                    for part in term(self, chunk):
                        value += part.detach()
                        if part.requires_grad:
                            grad += flatten(self.network.gradients(part))
        except RuntimeError as error:
            if not _undifferentiable(error):
                raise
            raise DerivativeError(
                f"{name} needs higher derivatives, which an operation of the model does not have "
                f"{_why(error)}"
            ) from error
        return value, grad

    def _check(self, theta: Tensor, name: str = "", term: Term | None = None) -> None:
        """Insist, once, on right derivatives of derivatives where the model brings its own."""
        if name in self._checked:
            return
        few, at = self.sample(FEW, theta)
        v = random_direction(at)
        with torch.enable_grad():
            functions = own_functions(few.total(next(iter(few.chunks))))

        def insist(function: Callable[[Tensor], Tensor], slope: Tensor, what: str) -> None:
            wrong = mismatch(function, slope, at, v)
            if wrong > TOLERANCE[at.dtype]:
                raise DerivativeError(
                    f"{what} would be off by {wrong:.1%}, since the backward of "
                    f"{', '.join(functions)} cannot be differentiated (once_differentiable, "
                    f"detach, no_grad or NumPy in it); write that backward in torch operations on "
                    f"ctx.saved_tensors"
                )

        if functions:
            few._checked.add("")
            product = few.hvp(at, v)
            insist(lambda x: few.loss_and_grad(x)[1], product, "a product with the loss's Hessian")
        if functions and term is not None:
            slope = few._sum_of(at, name, term)[1].dot(v)
            insist(lambda x: few._sum_of(x, name, term)[0], slope, f"the gradient of {name}")
        self._checked.add(name)


def _given(what: str, function: Loss, outputs: Any, chunk: Chunk) -> Any:
    """What a function of (outputs, targets) gives; where it fails, in a sentence."""
    with explained(
        lambda error: (
            f"the {what} failed on the outputs of the model and the targets ({placed(error)}); it "
            f"gets both for a chunk of the examples, and must give one number for each of these"
        )
    ):
        return function(outputs, chunk.targets)


def differentiable(total: Tensor) -> Tensor:
    """Insist on a loss that depends on the parameters in a way torch can differentiate."""
    if not total.requires_grad:
        raise InputError(
            "the loss does not depend on the parameters in a way torch can differentiate; look "
            "for no_grad, detach, item or integers in the model and the loss"
        )
    return total


def _joined(several: Sequence[Any], chunks: Iterable[Chunk], by: list[Tensor]) -> Any:
    """The outputs of all chunks as those of one; `by` gets what they may be differentiated by."""
    parts = [[tensor for _, tensor in leaves(outputs, "outputs")] for outputs in several]
    for own, chunk in zip(parts, chunks, strict=True):
        for tensor in own:
            if tensor.ndim == 0 or len(tensor) != chunk.examples:
                raise InputError(
                    f"outputs of {chunk.examples} examples at once must have these along the first "
                    f"axis to be joined with others, got shape {tuple(tensor.shape)}; give a "
                    f"chunk_size of all examples to Problem"
                )
    whole = [torch.cat(column) for column in zip(*parts, strict=True)]
    joined = [t.requires_grad_() if t.is_floating_point() else t for t in whole]
    by += [tensor for tensor in joined if tensor.requires_grad]
    rest = iter(joined)
    return map_tensors(lambda _: next(rest), several[0])


def losses_of(loss: ModelLoss, network: FlatNetwork, batch: Any) -> Tensor:
    """What a function of (model, batch) gives at the point loaded: losses, or one number."""
    model = network.model if isinstance(network.model, nn.Module) else network
    with explained(
        lambda error: (
            f"the loss of (model, batch) failed on a batch of the data ({placed(error)}); it is "
            f"called with the model and each batch as it was given"
        )
    ):
        return loss.measured(model, batch)


def per_example(what: str, values: Any, chunk: Chunk) -> Tensor:
    """Insist that a user's function gave one number per example, shape (chunk.examples,)."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else None
    n = chunk.examples
    if shape == () and chunk.whole and n == 1:
        return values.reshape(1)
    if shape != (n,):
        gave = f"shape {shape}" if shape is not None else kind(values)
        number = "; one number for the whole data is given by a function of (model, batch)"
        raise InputError(
            f"the {what} must give one value per example (reduction='none'), a tensor of shape "
            f"({n},), got {gave} for {n} examples{number if shape == () else ''}"
        )
    return values


def weighted_sum(values: Tensor, chunk: Chunk) -> Tensor:
    """Sum of an example's number times its weight, shape (), float64."""
    if chunk.weights is None:
        return values.sum(dtype=torch.float64)
    return values.double().dot(chunk.weights)


def _undifferentiable(error: RuntimeError) -> bool:
    return any(word in str(error) for word in UNDIFFERENTIABLE)


def _why(error: RuntimeError) -> str:
    """Why there is no second derivative, and what to do."""
    if REENTRANT in str(error):
        return f"(its activations are checkpointed with {REENTRANT}); give use_reentrant=False"
    return f"({one_line(error)}); write that operation out in plain ones"


def _outputs(outputs: Any, _: Any, /) -> Any:
    """In place of a loss, where there is none."""
    return outputs


def _on_inputs(inputs: Any, dtype: torch.dtype, error: Exception, *, alone: bool) -> str:
    """One sentence on a model that failed on its inputs, `alone` where there are no targets."""
    said = one_line(error)
    named = list(leaves(inputs, "inputs"))
    if isinstance(error, RuntimeError) and TYPES.search(said):
        whole = [name for name, tensor in named if not tensor.is_floating_point()]
        given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in named)
        remedy = (
            f"convert {whole[0]} with .float() unless they are indices"
            if whole
            else "convert what must be integers with .long(), and let forward cast to no fixed type"
        )
        return (
            f"the model, in {dtype}, cannot take inputs of these types: {given} ({said}); {remedy}"
        )
    given = ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in named)
    own = "; a loss that calls the model itself is lambda model, batch: ..., by these names"
    return (
        f"the model cannot be evaluated on {given or 'its inputs'} ({placed(error)}); give inputs "
        f"that model(inputs) takes: a tuple or list becomes its arguments, a dict its keywords"
        f"{own * alone}"
    )
