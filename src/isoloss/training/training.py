"""Training of a stack of networks over mini-batches in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoloss.errors import InputError
from isoloss.flat import flatten, load_into, trainable
from isoloss.losses import Loss, get_loss
from isoloss.training.adam import Adam
from isoloss.training.gradients import best_gradients
from isoloss.training.stack import Layout

VALUES_AT_ONCE = 2**21
"""Numbers of inputs and outputs of a layer to hold when the networks are evaluated: some 8 MB."""


@dataclass
class TrainingState:
    """All that training needs to go on from the end of an epoch.

    Attributes:
        adam: Adam's, of all members.
        epoch: Epochs so far.
    """

    adam: Adam
    epoch: int = 0


@dataclass(frozen=True)
class Norms:
    """Squared norms of each member, shape (members,), float64.

    Attributes:
        whole: Of all parameters: the walk's R.
        weights: Of weight matrices and kernels alone, as in the reference's weight decay.
    """

    whole: Tensor
    weights: Tensor


class Training:
    """Adam with weight decay, for networks of one architecture that differ in start and penalty.

    Each member minimizes its mean loss plus penalty * sum(W^2), the sum over weight matrices and
    kernels. The members do not touch each other: one that becomes NaN leaves the others as they
    are.

    Args:
        model: Gives the architecture, type and device.
        loss: `"cross_entropy"`, `"mse"`, or a function giving one loss per example.
        inputs: Training inputs, shape (examples, ...), of the model's type; with `own_examples`
            (members, examples, ...).
        targets: Training targets, likewise.
        penalties: One for each member; finite and not negative.
        include_biases: Whether the penalty is on biases too, as the walk's R is.
        own_examples: Whether each member has its own examples.
        batch_size: Examples a step, in their order; the last batch of an epoch holds what is left.

    Attributes:
        members: Number of networks.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """

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
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} is not possible; give at least 1")
        named = trainable(model, None)
        first = next(iter(named.values()))
        self.members = len(penalties)
        self._layout = Layout({n: tuple(p.shape) for n, p in named.items()}, self.members)
        self._loss = get_loss(loss)
        self._inputs, self._targets = (
            data if own_examples else data.expand(self.members, *data.shape)
            for data in (inputs, targets)
        )
        self._batches = list(
            zip(
                self._inputs.split(batch_size, dim=1),
                self._targets.split(batch_size, dim=1),
                strict=True,
            )
        )
        batch = tuple(self._batches[0][0].shape[1:])
        self._gradients = best_gradients(model, self._loss, self.members, batch)
        check_penalties(penalties)
        self._slopes = torch.tensor(penalties, dtype=torch.float64).mul(2).to(first).unsqueeze(1)
        self._penalized = [
            name
            for name, shape in self._layout.shapes.items()
            if any(penalties) and (include_biases or len(shape) > 1)
        ]

    def init(self, thetas: Tensor) -> TrainingState:
        """The state before the first epoch.

        Args:
            thetas: Starts, shape (members, parameters), in the order of `named_parameters()`.

        Returns:
            The state, which shares no memory with the starts.

        Raises:
            InputError: The model's outputs do not fit the loss or the targets.
        """
        state = TrainingState(Adam.at(self._layout.scatter(thetas)))
        self._loss(self._outputs(state, self._inputs[:, :1])[0], self._targets[0, :1])
        return state

    def epoch(self, state: TrainingState) -> None:
        """Train for one epoch; the state is changed in place."""
        theta = state.adam.theta
        grad = torch.empty_like(theta)
        parameters, grads = self._layout.views(theta), self._layout.views(grad)
        with torch.no_grad():
            for inputs, targets in self._batches:
                self._gradients.gradient(parameters, inputs, targets, grads)
                for name in self._penalized:
                    grads[name].flatten(1).addcmul_(parameters[name].flatten(1), self._slopes)
                state.adam.step(grad)
        state.epoch += 1

    def thetas(self, state: TrainingState) -> Tensor:
        """The members' parameters, shape (members, parameters), a copy."""
        return self._layout.gather(state.adam.theta)

    def norms(self, state: TrainingState) -> Norms:
        """The members' squared norms."""
        views = self._layout.views(state.adam.theta)
        each = {name: view.flatten(1).double().square().sum(1) for name, view in views.items()}
        zero = torch.zeros(self.members, dtype=torch.float64, device=state.adam.theta.device)
        weights = [norm for name, norm in each.items() if views[name].ndim > 2]
        return Norms(sum(each.values(), zero), sum(weights, zero))

    def evaluate(
        self, state: TrainingState, inputs: Tensor, targets: Tensor, metric: Loss
    ) -> tuple[Tensor, Tensor]:
        """Mean loss and metric of each member over examples that they share.

        Args:
            state: The members.
            inputs: Shape (examples, ...).
            targets: Shape (examples, ...).
            metric: A function of (outputs, targets) giving one value per example.

        Returns:
            Loss, without a penalty, and metric, each of shape (members,), float64.
        """
        sums = torch.zeros(2, self.members, dtype=torch.float64, device=inputs.device)
        step = max(1, VALUES_AT_ONCE // (self.members * max(inputs[0].numel(), 100)))
        for x, y in zip(inputs.split(step), targets.split(step), strict=True):
            outputs = self._outputs(state, x.expand(self.members, *x.shape)).flatten(0, 1)
            repeated = y.expand(self.members, *y.shape).flatten(0, 1)
            for total, measure in zip(sums, (self._loss, metric), strict=True):
                total += measure(outputs, repeated).double().view(self.members, -1).sum(1)
        loss, value = sums / len(targets)
        return loss, value

    def _outputs(self, state: TrainingState, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self._gradients.outputs(self._layout.views(state.adam.theta), inputs)


def check_penalties(penalties: Sequence[float]) -> None:
    """Insist that penalties are finite and not negative.

    Args:
        penalties: The weights of the squared norm.

    Raises:
        InputError: There is none, or one of them is not possible.
    """
    if not penalties:
        raise InputError("no penalty was given; give at least one, as in 0,1e-3,1")
    for penalty in penalties:
        if not 0 <= penalty < float("inf"):
            raise InputError(
                f"penalty {penalty:g} is not possible; give a finite number from 0 upwards"
            )


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

    Args:
        model: Its trainable parameters are changed.
        loss: `"cross_entropy"`, `"mse"`, or a function giving one loss per example.
        inputs: Training inputs, first axis the examples.
        targets: Training targets.
        epochs: Passes over the examples.
        batch_size: Examples a step; the last batch of an epoch holds what is left.
        state: Where the same training stood, to go on from there; it is changed in place.
        after_epoch: Called with the state after each epoch.

    Raises:
        InputError: A count is not positive.
    """
    if epochs < 1 or batch_size < 1:
        raise InputError(
            f"epochs={epochs}, batch_size={batch_size} is not possible; both must be at least 1"
        )
    named = trainable(model, None)
    training = Training(model, loss, inputs, targets, batch_size=batch_size)
    if state is None:
        state = training.init(flatten(list(named.values())).unsqueeze(0))
    while state.epoch < epochs:
        training.epoch(state)
        if after_epoch is not None:
            after_epoch(state)
    load_into(model, training.thetas(state)[0], {n: tuple(p.shape) for n, p in named.items()})
