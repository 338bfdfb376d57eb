"""Adam for a stack of networks over mini-batches in one fixed order: phase 1 and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from isoloss._kernels.capture import Captured, UncapturableError, graph_for
from isoloss._kernels.stacked import Stacked, fastest
from isoloss.arguments import check_fields, checked, real, whole
from isoloss.errors import InputError, check_takes, one_line
from isoloss.evaluation.arithmetic import reproducible
from isoloss.evaluation.failures import of_the_device
from isoloss.flat import flatten, trainable
from isoloss.losses import Loss, ModelLoss, TorchLoss, get_loss
from isoloss.names import load_into

LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-7

VALUES_AT_ONCE = 2**21
"""Numbers of inputs and outputs of a layer to hold when the networks are evaluated: some 8 MB."""
VALUES_ON_A_GPU = 2**25
"""The same where memory is larger and launching a kernel takes as long as many numbers."""

MOMENTS = "theta", "mean", "square"


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

    # theta -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon), as before section 2.1
    # of Kingma and Ba (ICLR 2015); torch adds its epsilon after the bias correction

    def step(self, grad: Tensor) -> None:
        """Update theta by a gradient of its shape."""
        self.steps += 1
        epsilon = EPSILON / math.sqrt(1 - BETA2**self.steps)
        self._update(grad, self._steps, LEARNING_RATE, epsilon)

    def captured_step(self, grad: Tensor) -> None:
        """The same from what the device holds, `steps` excepted, which is left as it is."""
        t = self._steps.add_(1).double()
        one, two = (-torch.expm1(t * math.log(beta)) for beta in (BETA1, BETA2))  # 1 - beta^t
        rate = LEARNING_RATE * two.sqrt() / one
        # after infinitely many steps torch corrects no bias: the rate here does it
        self._update(grad, torch.full_like(self._steps, math.inf), rate.float(), EPSILON)

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step changes."""
        return [self.theta, self.mean, self.square, self._steps]

    def _update(self, grad: Tensor, steps: Tensor, rate: Tensor | float, epsilon: float) -> None:
        adam(
            [self.theta], [grad], [self.mean], [self.square], [], [steps],  # counted up there
            fused=True, amsgrad=False, maximize=False, weight_decay=0.0,
            lr=rate, beta1=BETA1, beta2=BETA2, eps=epsilon,
        )  # fmt: skip


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
    shape (examples, ...), or `own_examples`, shape (groups, examples, ...), each of as many members
    that follow one another; the last batch of an epoch holds what is left.

    On a GPU a step on a mini-batch is captured in a CUDA graph; `notes` says where that failed.
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
        named = trainable(model, None)
        first = next(iter(named.values()))
        self.members = len(penalties)
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self.notes: list[str] = []
        self._loss = get_loss(loss)
        reduced = isinstance(self._loss, TorchLoss) and self._loss.reduction != "none"
        if reduced or isinstance(self._loss, ModelLoss):
            raise InputError(
                "training takes a named loss, or a function of (outputs, targets) or a loss object "
                "with reduction='none' that gives one loss per example"
            )
        self._device = first.device
        self._inputs, self._targets = _grouped(own_examples, inputs, targets)
        if self.members % len(self._inputs):
            raise InputError(
                f"examples of {len(self._inputs)} groups cannot be shared out to {self.members} "
                f"members; give as many penalties for each group"
            )
        pieces = (data.split(batch_size, dim=1) for data in (self._inputs, self._targets))
        self._batches = list(zip(*pieces, strict=True))
        numbers = self.members * sum(p.numel() for p in named.values())
        self._grad = Stacked(self.shapes, self.members, first.new_empty(numbers))
        self._at = self._grad  # until there is a state
        self._capturing = graph_for(self._device) is not None
        self._uncapturable = False
        self._captured: dict[torch.Size, Captured[None]] = {}
        self._captured_for: Adam | None = None
        with torch.no_grad(), reproducible(self._device):
            of_batch, all_targets = map(self._of_each, (self._batches[0][0], self._targets))
            self._gradients, why = fastest(
                model, self._loss, self._at, of_batch, all_targets, self._capturing
            )
        self.notes += [why] if why else []
        self._slopes = (
            torch.tensor(penalties, dtype=torch.float64, device="cpu").mul(2).to(first).unsqueeze(1)
        )
        matrices = [name for name, shape in self.shapes.items() if len(shape) > 1]
        penalized = list(self.shapes) if include_biases else matrices
        self._penalized = penalized if any(penalties) else []

    @checked
    def init(self, thetas: Tensor) -> TrainingState:
        """The state before the first epoch from starts of shape (members, parameters), copied.

        Raises:
            InputError: The model's outputs do not fit the loss or the targets.
        """
        size, dtype = self._grad.buffer.numel() // self.members, self._grad.buffer.dtype
        if thetas.shape != (self.members, size) or thetas.dtype != dtype:
            raise InputError(
                f"thetas must have shape ({self.members}, {size}), one vector for each penalty, of "
                f"{dtype}, got {thetas.dtype} of shape {tuple(thetas.shape)}"
            )
        state = TrainingState(Adam.at(Stacked.of(self.shapes, thetas).buffer))
        few = self._of_each(self._inputs[:, :1])
        losses = self._loss(self._outputs(state, few)[0], self._targets[0, :1])
        if tuple(losses.shape) != (1,):
            raise InputError(
                f"the loss must give one value per example, shape (1,) for one of them, got shape "
                f"{tuple(losses.shape)}; use reduction='none'"
            )
        return state

    @checked
    def epoch(self, state: TrainingState) -> None:
        """Train for one epoch; the state is changed in place."""
        with torch.no_grad(), reproducible(self._device):
            for inputs, targets in self._batches:
                if self._capturing:
                    self._replay(state, inputs, targets)
                else:
                    self._differentiate(state, inputs, targets)
                    state.adam.step(self._grad.buffer)
        state.epoch += 1

    @checked
    def join(self, states: Sequence[TrainingState]) -> TrainingState:
        """One state of all members from those of parts of them, which stand at the same epoch."""
        count, moments = self.members // len(states), list[Tensor]()
        for name in MOMENTS:
            buffers = (getattr(one.adam, name).to(self._device) for one in states)
            parts = [Stacked(self.shapes, count, buffer).all for buffer in buffers]
            pieces = [torch.cat(same) for same in zip(*parts, strict=True)]
            moments.append(Stacked.joined(self.shapes, pieces).buffer)
        theta, mean, square = moments
        adam = Adam(theta, mean, square, states[0].adam.steps)
        return TrainingState(adam, states[0].epoch)

    @checked
    def split(self, state: TrainingState, parts: int) -> list[TrainingState]:
        """The states of equally many members each, copies."""
        moments: list[list[Tensor]] = []
        for name in MOMENTS:
            views = Stacked(self.shapes, self.members, getattr(state.adam, name)).all
            pieces = zip(*(view.chunk(parts) for view in views), strict=True)
            moments.append([Stacked.joined(self.shapes, each).buffer for each in pieces])
        steps, epoch = state.adam.steps, state.epoch
        return [
            TrainingState(Adam(theta, mean, square, steps), epoch)
            for theta, mean, square in zip(*moments, strict=True)
        ]

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
        self,
        state: TrainingState,
        inputs: Tensor,
        targets: Tensor,
        metric: Loss,
        *,
        own_examples: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss without a penalty and metric of each member, means over examples.

        They are shared or `own_examples`, of shapes as for training.
        """
        check_takes("metric", metric, "outputs", "targets")
        inputs, targets = _grouped(own_examples, inputs, targets)
        sums = torch.zeros(2, self.members, dtype=torch.float64, device=inputs.device)
        values = VALUES_ON_A_GPU if self._capturing else VALUES_AT_ONCE
        step = max(1, values // (self.members * max(inputs[0, 0].numel(), 100)))
        for x, y in zip(inputs.split(step, dim=1), targets.split(step, dim=1), strict=True):
            outputs = self._outputs(state, self._of_each(x)).flatten(0, 1)
            repeated = self._of_each(y).flatten(0, 1)
            for total, measure in zip(sums, (self._loss, metric), strict=True):
                each = measure(outputs, repeated)
                if not isinstance(each, Tensor) or len(each) != len(repeated):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise InputError(f"{measure!r} must give one value per example, shape (n,)")
                total += each.double().view(self.members, -1).sum(1)
        loss, value = sums / targets.shape[1]
        return loss, value

    def _outputs(self, state: TrainingState, inputs: Tensor) -> Tensor:
        try:
            with torch.no_grad(), reproducible(self._device):
                return self._gradients.outputs(self._views(state), inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if of_the_device(error):
                raise
            raise InputError(
                f"the model cannot take inputs of {inputs.dtype} and shape "
                f"{tuple(inputs.shape[1:])} ({one_line(error)}); give others, or another model"
            ) from error

    def _differentiate(self, state: TrainingState, inputs: Tensor, targets: Tensor) -> None:
        """The gradient of a mini-batch with that of the penalty."""
        at, into = self._views(state), self._grad
        self._gradients.gradient(at, self._of_each(inputs), self._of_each(targets), into)
        for name in self._penalized:
            into.named[name].flatten(1).addcmul_(at.named[name].flatten(1), self._slopes)

    def _replay(self, state: TrainingState, inputs: Tensor, targets: Tensor) -> None:
        """A step from what the device holds, captured once for each shape of a batch."""

        def step(inputs: Tensor, targets: Tensor) -> None:
            self._differentiate(state, inputs, targets)
            state.adam.captured_step(self._grad.buffer)

        if self._captured_for is not state.adam:
            self._captured.clear()  # it is of the tensors of another state
            self._captured_for = state.adam
        graph = None if self._uncapturable else graph_for(self._device)
        if graph and inputs.shape not in self._captured:
            changes = [*state.adam.tensors, self._grad.buffer]
            try:
                captured = Captured(step, (inputs, targets), graph, changes)
                self._captured[inputs.shape] = captured
            except UncapturableError as error:
                self._uncapturable = True
                self.notes.append(f"steps are not captured in a CUDA graph: {error}")
        self._captured.get(inputs.shape, step)(inputs, targets)
        state.adam.steps += 1

    def _of_each(self, data: Tensor) -> Tensor:
        """Of each group's examples, shape (groups, ...), those of each member."""
        each = self.members // len(data)
        return data.unsqueeze(1).expand(-1, each, *data.shape[1:]).flatten(0, 1)

    def _views(self, state: TrainingState) -> Stacked:
        if self._at.buffer is not state.adam.theta:
            self._at = Stacked(self.shapes, self.members, state.adam.theta)
        return self._at


def check_penalties(penalties: Sequence[float]) -> None:
    """Insist on at least one penalty, the weight of the squared norm, and on finite ones from 0."""
    if not penalties:
        raise InputError("penalties must be at least one, got no penalty; give them as in 0,1e-3,1")
    for penalty in penalties:
        penalty = real("penalty", penalty)
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


def _grouped(own: bool, *data: Tensor) -> list[Tensor]:
    """Examples with a leading axis of the groups of members that they are of."""
    grouped = [one if own else one.unsqueeze(0) for one in data]
    counts = {tuple(one.shape[:2]) for one in grouped}
    if len(counts) > 1 or not all(one.ndim > 1 and len(one) and one.shape[1] for one in grouped):
        shape = "(groups, examples, ...)" if own else "(examples, ...)"
        raise InputError(
            f"inputs and targets must be of the same examples, shape {shape} with one at least, "
            f"got shapes {' and '.join(str(tuple(one.shape)) for one in data)}"
        )
    return grouped
