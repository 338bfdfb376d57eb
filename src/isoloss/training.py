"""Adam for a stack of networks over mini-batches in one fixed order: phase 1 and weight decay."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim.adam import adam

from isoloss._kernels.chain import Chain, keep_freed_memory, plain, slope_of, stackable
from isoloss._kernels.layers import Part
from isoloss.arguments import check_fields, checked, whole
from isoloss.errors import InputError, check_takes, one_line
from isoloss.flat import Layout, flatten, load_into, trainable
from isoloss.losses import Loss, get_loss

LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-7

VALUES_AT_ONCE = 2**21
"""Numbers of inputs and outputs of a layer to hold when the networks are evaluated: some 8 MB."""


@dataclass
class Adam:
    """Adam's state, of which `step` changes the tensors in place; epsilon is where Keras has it."""

    theta: Tensor
    mean: Tensor  # m, decaying mean of the gradient
    square: Tensor  # v, of the squared gradient
    steps: int = 0

    def __post_init__(self) -> None:
        self._steps = torch.tensor(float(self.steps), device=self.theta.device)

    @classmethod
    def at(cls, theta: Tensor) -> Adam:
        """The state before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def step(self, grad: Tensor) -> None:
        """Update theta by a gradient of its shape."""
        self.steps += 1
        # theta -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon), as before section
        # 2.1 of Kingma and Ba (ICLR 2015); torch adds its epsilon after the bias correction
        adam(
            [self.theta], [grad], [self.mean], [self.square], [], [self._steps],  # counted up there
            fused=True, amsgrad=False, maximize=False, weight_decay=0.0,
            lr=LEARNING_RATE, beta1=BETA1, beta2=BETA2,
            eps=EPSILON / math.sqrt(1 - BETA2**self.steps),
        )  # fmt: skip


class Stacked:
    """Several networks' parameters, each one tensor of all members, a view of one buffer."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], members: int, buffer: Tensor) -> None:
        self.buffer = buffer
        self.named = Layout({name: (members, *s) for name, s in shapes.items()}).named(buffer)
        self.all = list(self.named.values())  # each of shape (members, ...)

    @functools.cached_property
    def each(self) -> list[list[Tensor]]:
        """A member's own tensors, for each member."""
        return [list(own) for own in zip(*(view.unbind() for view in self.all), strict=True)]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], thetas: Tensor) -> Stacked:
        """Copies of flat vectors, shape (members, parameters), in a new buffer."""
        pieces = Layout(shapes).split(thetas)
        return cls(shapes, len(thetas), torch.cat([piece.flatten() for piece in pieces]))


class ByHand:
    """Plain networks: dense ones all in each product, others by one; a ValueError if none fits."""

    def __init__(
        self, parts: list[Part], loss: Loss, at: Stacked, inputs: Tensor, targets: Tensor
    ) -> None:
        dense = stackable(parts)  # torch's stacked and grouped convolutions are slower on a CPU
        self._parts = parts
        self._stacked = dense and len(inputs) > 1
        # of dense networks, what tanh loses is lost in float64 too: it costs a third of the time
        self._exact = not dense and inputs.dtype == torch.float64
        self._chains: dict[tuple[int, ...], Chain] = {}
        lead = 2 if self._stacked else 1
        mine, batch = (at.all, inputs) if self._stacked else (at.each[0], inputs[0])
        shape = self._chain(mine, batch).shape[lead:]
        self._slope = slope_of(loss, shape, targets, inputs.dtype, self._stacked)
        if not dense:
            keep_freed_memory()

    def outputs(self, at: Stacked, inputs: Tensor) -> Tensor:
        if self._stacked:
            return self._chain(at.all, inputs).outputs(at.all, inputs)
        several = zip(at.each, inputs, strict=True)
        return torch.stack([self._chain(mine, x).outputs(mine, x).clone() for mine, x in several])

    def gradient(self, at: Stacked, inputs: Tensor, targets: Tensor, into: Stacked) -> None:
        several = zip(at.each, inputs, targets, into.each, strict=True)
        groups = [(at.all, inputs, targets, into.all)] if self._stacked else several
        for mine, x, y, own in groups:
            chain = self._chain(mine, x)
            chain.gradient(mine, self._slope(chain.outputs(mine, x), y), own)

    def _chain(self, parameters: list[Tensor], inputs: Tensor) -> Chain:
        shape = tuple(inputs.shape)
        if shape not in self._chains:
            self._chains[shape] = Chain(self._parts, parameters, shape, exact=self._exact)
        return self._chains[shape]


class ByAutograd:
    """Networks of any kind: all at once by `torch.func.vmap`, or one after another."""

    def __init__(self, model: nn.Module, loss: Loss, at_once: bool) -> None:
        self._model = copy.deepcopy(model)
        self._loss = loss
        self._at_once = at_once

    def outputs(self, at: Stacked, inputs: Tensor) -> Tensor:
        if self._at_once:
            return vmap(self._call)(at.named, inputs)
        several = zip(at.each, inputs, strict=True)
        return torch.stack([self._call(dict(zip(at.named, m, strict=True)), x) for m, x in several])

    def gradient(self, at: Stacked, inputs: Tensor, targets: Tensor, into: Stacked) -> None:
        if self._at_once:
            found = vmap(grad(self._mean))(at.named, inputs, targets)
            for name, view in into.named.items():
                view.copy_(found[name])
            return
        for mine, x, y, own in zip(at.each, inputs, targets, into.each, strict=True):
            leaves = [tensor.detach().requires_grad_() for tensor in mine]
            with torch.enable_grad():
                mean = self._mean(dict(zip(at.named, leaves, strict=True)), x, y)
            found = torch.autograd.grad(mean, leaves, allow_unused=True, materialize_grads=True)
            for tensor, piece in zip(own, found, strict=True):
                tensor.copy_(piece)

    def _call(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self._model, parameters, (inputs,))

    def _mean(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._loss(self._call(parameters, inputs), targets)
        return losses.sum(dtype=torch.float64) / len(losses)


@dataclass
class TrainingState:
    """All that training needs to continue from the end of an epoch."""

    adam: Adam  # of all members
    epoch: int = 0  # epochs so far

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Norms:
    """Squared norms of each member, shape (members,), float64."""

    whole: Tensor  # of all parameters: the walk's R
    weights: Tensor  # of weight matrices and kernels alone, as in the reference's weight decay


class Training:
    """Adam with weight decay, for networks of one architecture that differ in start and penalty.

    Each member minimizes its mean loss plus penalty * sum(W^2), the sum over weight matrices and
    kernels, and over biases too with `include_biases`, as in the walk's R. The members do not touch
    each other: one that becomes NaN leaves the others as they are. Inputs and targets are shared,
    shape (examples, ...), or `own_examples`, shape (members, examples, ...); the last batch of an
    epoch holds what is left.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        inputs: Tensor,
        targets: Tensor,
        *,
        penalties: Sequence[float] = (0.0,),
        include_biases: bool = False,
        own_examples: bool = False,
        batch_size: int = 32,
    ) -> None:
        check_penalties(penalties)
        batch_size = whole("batch_size", batch_size, 1)
        axis, counts = int(own_examples), set[int]()
        for name, data in (("inputs", inputs), ("targets", targets)):
            lead = (len(penalties),) if own_examples else ()
            if data.ndim <= axis or tuple(data.shape[:axis]) != lead or not data.shape[axis]:
                raise InputError(
                    f"{name} must have shape ({'members, ' if own_examples else ''}examples, ...) "
                    f"with an example at least, got shape {tuple(data.shape)}"
                )
            counts.add(data.shape[axis])
        if len(counts) > 1:
            raise InputError(
                f"inputs and targets must be of as many examples, got {len(inputs)} and "
                f"{len(targets)}"
            )
        named = trainable(model, None)
        first = next(iter(named.values()))
        self.members = len(penalties)
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self._loss = get_loss(loss)
        self._inputs, self._targets = (
            data if own_examples else data.expand(self.members, *data.shape)
            for data in (inputs, targets)
        )
        pieces = (data.split(batch_size, dim=1) for data in (self._inputs, self._targets))
        self._batches = list(zip(*pieces, strict=True))
        numbers = self.members * sum(p.numel() for p in named.values())
        self._grad = Stacked(self.shapes, self.members, first.new_empty(numbers))
        self._at = self._grad  # until there is a state
        self._gradients = self._best(model)
        self._slopes = torch.tensor(penalties, dtype=torch.float64).mul(2).to(first).unsqueeze(1)
        matrices = [name for name, shape in self.shapes.items() if len(shape) > 1]
        penalized = list(self.shapes) if include_biases else matrices
        self._penalized = penalized if any(penalties) else []

    @checked
    def init(self, thetas: Tensor) -> TrainingState:
        """The state before the first epoch from starts of shape (members, parameters), copied.

        Raises:
            InputError: The model's outputs do not fit the loss or the targets.
        """
        size = sum(math.prod(shape) for shape in self.shapes.values())
        if thetas.shape != (self.members, size) or thetas.dtype != self._grad.buffer.dtype:
            raise InputError(
                f"thetas must have shape ({self.members}, {size}), one vector for each penalty, of "
                f"{self._grad.buffer.dtype}, got {thetas.dtype} of shape {tuple(thetas.shape)}"
            )
        state = TrainingState(Adam.at(Stacked.of(self.shapes, thetas).buffer))
        losses = self._loss(self._outputs(state, self._inputs[:, :1])[0], self._targets[0, :1])
        if tuple(losses.shape) != (1,):
            raise InputError(
                f"the loss must give one value per example, shape (1,) for one of them, got shape "
                f"{tuple(losses.shape)}; use reduction='none'"
            )
        return state

    @checked
    def epoch(self, state: TrainingState) -> None:
        """Train for one epoch; the state is changed in place."""
        at, into = self._views(state), self._grad
        with torch.no_grad():
            for inputs, targets in self._batches:
                self._gradients.gradient(at, inputs, targets, into)
                for name in self._penalized:
                    into.named[name].flatten(1).addcmul_(at.named[name].flatten(1), self._slopes)
                state.adam.step(into.buffer)
        state.epoch += 1

    @checked
    def thetas(self, state: TrainingState) -> Tensor:
        """The members' parameters, shape (members, parameters), a copy."""
        return torch.cat([view.flatten(1) for view in self._views(state).all], dim=1)

    @checked
    def norms(self, state: TrainingState) -> Norms:
        """The members' squared norms."""
        named = self._views(state).named
        each = {name: view.flatten(1).double().square().sum(1) for name, view in named.items()}
        zero = torch.zeros(self.members, dtype=torch.float64, device=state.adam.theta.device)
        weights = [norm for name, norm in each.items() if named[name].ndim > 2]
        return Norms(sum(each.values(), zero), sum(weights, zero))

    @checked
    def evaluate(
        self, state: TrainingState, inputs: Tensor, targets: Tensor, metric: Loss
    ) -> tuple[Tensor, Tensor]:
        """Loss without a penalty and metric of each member, means over examples that they share."""
        check_takes("metric", metric, "outputs", "targets")
        if not (inputs.ndim and targets.ndim and len(inputs) == len(targets) > 0):
            raise InputError(
                f"inputs and targets must be of as many examples, got shapes "
                f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        sums = torch.zeros(2, self.members, dtype=torch.float64, device=inputs.device)
        step = max(1, VALUES_AT_ONCE // (self.members * max(inputs[0].numel(), 100)))
        for x, y in zip(inputs.split(step), targets.split(step), strict=True):
            outputs = self._outputs(state, x.expand(self.members, *x.shape)).flatten(0, 1)
            repeated = y.expand(self.members, *y.shape).flatten(0, 1)
            for total, measure in zip(sums, (self._loss, metric), strict=True):
                values = measure(outputs, repeated)
                if not isinstance(values, Tensor) or len(values) != len(repeated):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise InputError(f"{measure!r} must give one value per example, shape (n,)")
                total += values.double().view(self.members, -1).sum(1)
        loss, value = sums / len(targets)
        return loss, value

    def _outputs(self, state: TrainingState, inputs: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                return self._gradients.outputs(self._views(state), inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"the model cannot take inputs of {inputs.dtype} and shape "
                f"{tuple(inputs.shape[1:])} ({one_line(error)}); give others, or another model"
            ) from error

    def _views(self, state: TrainingState) -> Stacked:
        if self._at.buffer is not state.adam.theta:
            self._at = Stacked(self.shapes, self.members, state.adam.theta)
        return self._at

    def _best(self, model: nn.Module) -> ByHand | ByAutograd:
        """The fastest way that was measured for a network of this kind."""
        inputs, parts = self._batches[0][0], plain(model)
        usual = inputs.dtype == self._at.buffer.dtype
        if parts and usual and (stackable(parts) or inputs.device.type == "cpu"):
            try:
                return ByHand(parts, self._loss, self._at, inputs, self._targets)
            except ValueError:  # they do not fit, which torch itself may know how to do
                pass
        convolves = any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in model.modules())
        return ByAutograd(model, self._loss, at_once=self.members > 1 and not convolves)


def check_penalties(penalties: Sequence[float]) -> None:
    """Insist on at least one penalty, the weight of the squared norm, and on finite ones from 0."""
    if not penalties:
        raise InputError("penalties must be at least one, got no penalty; give them as in 0,1e-3,1")
    for penalty in penalties:
        if not 0 <= penalty < math.inf:
            raise InputError(f"penalties must be finite numbers from 0, got penalty {penalty:g}")


@checked
def train(
    model: nn.Module,
    loss: str | Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int = 32,
    state: TrainingState | None = None,
    after_epoch: Callable[[TrainingState], object] | None = None,
) -> None:
    """Train a model in place by Adam, over the same mini-batches in the same order every epoch.

    `state` is where the same training stood, to resume from; it is changed in place, and
    `after_epoch` is called with it.
    """
    epochs = whole("epochs", epochs, 1)
    if after_epoch is not None:
        check_takes("after_epoch", after_epoch, "state")
    training = Training(model, loss, inputs, targets, batch_size=batch_size)
    if state is None:
        state = training.init(flatten(list(trainable(model, None).values())).unsqueeze(0))
    while state.epoch < epochs:
        training.epoch(state)
        if after_epoch is not None:
            after_epoch(state)
    load_into(model, training.thetas(state)[0], training.shapes)
