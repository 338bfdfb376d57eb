"""The training loss as a deterministic function of one flat parameter vector."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from isoloss.arguments import checked, whole
from isoloss.copying import unwrapped
from isoloss.data import Chunk, Chunks
from isoloss.errors import InputError
from isoloss.evaluation import (
    Autograd,
    Evaluation,
    GaussNewton,
    Ranks,
    choose,
    dense_layers,
    fitting_now,
    gauss_newton,
    measured_size,
    ranks_of,
    recording,
    rounded,
)
from isoloss.evaluation.arithmetic import (
    channels_last_is_safe,
    check_precision,
    pays_channels_last,
    undisturbed,
)
from isoloss.evaluation.autograd import Term, weighted_sum
from isoloss.evaluation.failures import told
from isoloss.evaluation.reading import read_for
from isoloss.evaluation.shares import check_alike
from isoloss.flat import FlatNetwork, Model, Shapes, coarse, fixed, flatten, same, trainable
from isoloss.flat import vector as flat_vector
from isoloss.held import held_entries
from isoloss.losses import Loss, get_loss, get_metric

ALONE = Ranks()
DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Types in which a level can be held, by their names in settings and files."""
MADE_ANEW = {"_lock", "_mine", "_evaluation", "_gradient"}
"""What a copy of a problem does not take over."""
PRODUCT = 2
"""Evaluations that a product with the Hessian counts as."""
SMALL = 2**17
"""Parameters from which on no network is light."""


@dataclass(frozen=True)
class Inside:
    """What isoloss's own rooms see of a problem beside its public part."""

    network: FlatNetwork
    chunks: Chunks
    autograd: Autograd  # can be differentiated further
    loss: Loss
    metric: Loss | None
    model: Model  # the user's own
    given: Mapping[str, Tensor]  # its parameters
    held: Tensor | None  # the entries of theta that are not walked over, shape (size,), or none
    ranks: Ranks  # the processes that share the examples

    def walked(self, vector: Tensor) -> Tensor:
        """A gradient or a direction with zeros in the entries that are held."""
        return vector if self.held is None else vector.masked_fill(self.held, 0.0)


class _Mine(threading.local):
    """What a thread has made of a problem's evaluations; others make theirs meanwhile."""

    evaluations = 0


class Problem:
    """A training loss L(theta) over one fixed training set: usually the mean of a loss per example.

    The model is copied: its parameters, buffers, mode and gradients stay as they are. Theta is the
    flat vector of its trainable parameters in the order of `model.named_parameters()`; a parameter
    used in several places is there once, a frozen one acts but is no part of it. Threads may share
    a problem; they take turns.

    Args:
        model: A `torch.nn.Module`, or a function of (dict of parameters, inputs). A module gets a
            tuple or list of inputs as its arguments and a dict as its keyword arguments (one that
            takes these whole: a tuple of one), a function gets inputs whole.
        loss: `"cross_entropy"`, `"mse"`, `"bce_with_logits"`, `"huber"`, one of these with options
            such as `isoloss.losses.CrossEntropy(label_smoothing=0.1)`; an object such as
            `torch.nn.CrossEntropyLoss(weight=w)`, held at what its own reduction gives over all
            data; a function of (outputs, targets) giving one loss per example, shape (n,); or one
            whose arguments are named `model` and `batch`, which calls the model itself and gives
            one loss per example or one number for the whole data.
        data: A pair (inputs, targets), each a tensor or a structure of tensors (tuples, lists,
            dicts, dataclasses, nested) with the examples along the first axis of all; inputs alone,
            for a loss that takes None as targets; or an iterable of these, always the same. For a
            loss of (model, batch), a batch as that takes it, or a list of batches, which are never
            cut. Tensors, lists and generators are kept; a DataLoader is read again at every
            evaluation, one batch in memory at a time, so give `list(loader)` where the batches fit.
            Tensors that need no conversion are shared, not copied: change none of them in place
            while the problem is used, or the loss changes unnoticed.
        weights: How much each example counts in the mean, shape (examples,), in the order of the
            data, not negative; None for all alike. An example of weight 0 is left out and may hold
            NaN.
        metric: `"accuracy"`, `"binary_accuracy"`, `"mse"`, `"mae"`, a function of (outputs,
            targets), or of (model, batch) where the loss is, giving one value per example, or None
            for the one that goes with the loss.
        parameters: For a model that is a function: its tensors by name, the start of a walk.
        mask: For a walk over a part of a parameter (the weights that pruning left): by the
            parameter's name, a boolean tensor of its shape, True for the entries to walk over. The
            others stay as they are at the start; theta and R have them, gradients are 0 there. So
            does the padding of an `nn.Embedding(padding_idx=...)`, as in training.
        dtype: `torch.float32` or `torch.float64`; None takes the type of the parameters.
        device: None takes where the parameters are.
        chunk_size: Examples evaluated at once, summed in order, which bounds the memory. None takes
            images (inputs of four dimensions) by 50 on a CPU and 250 elsewhere, all else by 1000;
            for the gradient on a CPU, another size where that is measured to be faster, on a GPU
            all at once if they fit in its memory.
        precision: `"exact"`; or `"tf32"` (NVIDIA GPUs) or `"bf16"` for gradients in a reduced
            precision, which are faster on images and transformers. The loss is computed in full in
            all of them, so that a level is held as exactly.
        group: A process group, as `torch.distributed.group.WORLD` under `torchrun`, where each of
            its processes gives its share of the examples as `data` (and `weights`), and all else
            alike. The loss is that of all shares; every process makes the same calls and gets the
            same numbers. Left out: this process has all the examples.

    Attributes:
        size: Number of parameters.
        examples: Number of training examples, with a group of this process; 1 where the loss is
            one number.
        dtype: Type of theta.
        device: Device of theta.
        evaluations: Evaluations so far: one for a loss with its gradient, two for a product with
            the Hessian, and what a regularizer made of further derivatives counts.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
        RankError: With a group, in any call: another process has failed or went its own way.
    """

    @checked
    @undisturbed()
    def __init__(
        self,
        model: Model,
        loss: str | Loss,
        data: Any,
        *,
        weights: Tensor | None = None,
        metric: str | Loss | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        mask: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        chunk_size: int | None = None,
        precision: str = "exact",
        group: Any = ALONE,
    ) -> None:
        ranks = ALONE if group is ALONE else ranks_of(group)
        with ranks.together():
            if chunk_size is not None:
                chunk_size = whole("chunk_size", chunk_size, 1)
            _check_dtype(dtype)
            self._model = model = unwrapped(model)
            self._parameters = parameters
            self._layers = _layers(model)
            made = get_loss(loss)
            get_metric(metric, made)  # before the data are read
            network = FlatNetwork(model, parameters, dtype=dtype, device=device)
            if network.dtype not in DTYPES.values():
                raise InputError(
                    f"the model's parameters are {network.dtype}, too coarse to hold a level; "
                    f"give dtype=torch.float32 or torch.float64"
                )
            if dtype is None:
                _check_fine(model)
            check_precision(precision, network.device)
            last = channels_last_is_safe(network.model) and pays_channels_last(
                network.device, precision
            )
            ranks.carry(network.device)
            held = held_entries(network, mask)
            check_alike(ranks, network, {"precision": precision, "chunk_size": chunk_size}, held)
            chunks = read_for(
                made, network, data, weights, size=chunk_size, channels_last=last, ranks=ranks
            )
            self.size = network.size
            self.examples = chunks.given
            self.device = network.device
            self.evaluations = 0
            self.precision = precision
            self._chunk_size = self._given_size = chunk_size
            self._lock = threading.RLock()
            self._mine = _Mine()
            self._settle(network, chunks, made, get_metric(metric, made), held, ranks)

    def _settle(
        self,
        network: FlatNetwork,
        chunks: Chunks,
        loss: Loss,
        metric: Loss | None,
        held: Tensor | None,
        ranks: Ranks,
    ) -> None:
        self.dtype = network.dtype
        given = trainable(self._model, self._parameters)
        autograd = Autograd(network, chunks, loss)
        self._inside = Inside(
            network, chunks, autograd, loss, metric, self._model, given, held, ranks
        )
        self._evaluation = choose(network, chunks, loss, self.precision, ranks)
        self._gradient: Evaluation | None = None

    def __copy__(self) -> Problem:
        """Another of the same parts, which it takes turns with."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _mine=_Mine())
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock and the ways to evaluate, which a copy makes anew."""
        with self._lock:
            own = self._inside
            settled = own.network, own.chunks, own.loss, own.metric, own.held, own.ranks
            state = {**vars(self), "_inside": settled}
            return {k: v for k, v in state.items() if k not in MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        vars(self).update(state, _lock=threading.RLock(), _mine=_Mine())
        self._settle(*state["_inside"])

    def current(self) -> Tensor:
        """The model's parameters as they are now, as one flat vector.

        Returns:
            Shape (size,), a copy of the problem's type on its device.

        Raises:
            InputError: A layer, a buffer or a frozen parameter of the model has changed since the
                problem was made, so that its parameters would be evaluated with the older ones.
        """
        named = trainable(self._model, self._parameters)
        own = self._inside.network.model
        now = _layers(self._model)
        layers = {k: (now[k], then) for k, then in self._layers.items() if k in now}
        _check_as_made(layers, named, self.shapes)
        kept = fixed(own)
        for name, now in fixed(self._model).items():
            if name in kept and not same(kept[name], now) and not _trains(own, name):
                raise InputError(
                    f"{name!r} of the model has changed since the problem was made, so its present "
                    f"weights would be evaluated with the older {name!r}; make the Problem anew, "
                    f"after the training"
                )
        return flatten(list(named.values())).to(self.device, self.dtype)

    def loss(self, theta: Tensor) -> Tensor:
        """The training loss at a point, without its gradient.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64.
        """
        with self._evaluating():
            return self._evaluation.loss(theta)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss and its gradient at a point; counts as one evaluation.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64, and its gradient, shape (size,), of the
            problem's type. Both are new tensors. Chunks of data are summed in their order.
        """
        with self._evaluating():
            value, grad = self._counted(theta).loss_and_grad(theta)
            return value, self._inside.walked(grad)

    def rough(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss_and_grad`, the loss too in the problem's `precision`, without a pass for it.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss over the examples, shape (), float64, and its gradient, shape (size,).
        """
        with self._evaluating():
            value, grad = rounded(self._counted(theta)).loss_and_grad(theta)
            return value, self._inside.walked(grad)

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the training loss at a point, times a vector; exact, chunk by chunk.

        Costs some three evaluations of time and twice their memory; counts as two. Where the model
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
        direction = flat_vector("vector", vector, self.size).to(self.device, self.dtype)
        with self._evaluating():
            self._count(PRODUCT)
            direction = self._inside.walked(direction).clone()  # it may be an inference tensor
            return self._inside.walked(self._evaluation.hvp(theta, direction))

    def sum_of(
        self, theta: Tensor, name: str, term: Term, evaluations: int
    ) -> tuple[Tensor, Tensor]:
        """A quantity made of derivatives of the loss or the model, for regularizers.

        Args:
            theta: Shape (size,).
            name: Of the quantity, for errors.
            term: From (evaluation, chunk of examples) to differentiable numbers of shape (), whose
                sum over the chunks is the quantity.
            evaluations: What it counts as.

        Returns:
            The quantity, shape (), and its gradient, shape (size,).

        Raises:
            DerivativeError: A derivative that is needed does not exist or would be wrong.
        """
        with self._evaluating():
            self._count(evaluations)
            own = self._inside
            return own.ranks.add(theta, lambda: own.autograd.sum_of(theta, name, term))

    def of_outputs(
        self, theta: Tensor, evaluation: Autograd, function: Callable[[Any], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A function of the model's outputs on other inputs, for regularizers; not counted.

        Args:
            theta: Shape (size,).
            evaluation: Of this problem's network, on these inputs.
            function: From the outputs for all inputs to a differentiable number of shape ().

        Returns:
            The number, shape (), and its gradient, shape (size,).
        """
        with self._evaluating():
            return evaluation.of_outputs(theta, function)

    @property
    def light(self) -> bool:
        """Whether an evaluation takes hardly longer than algebra in tens of directions.

        For methods. So it does of fewer than 131,072 parameters, in dense layers alone or on a GPU.
        """
        if self.size >= SMALL:
            return False
        return self.device.type != "cpu" or dense_layers(self._inside.network) is not None

    def gauss_newton(self, theta: Tensor) -> GaussNewton | None:
        """Most of the Gauss-Newton part of the loss's Hessian at a point, for methods; not counted.

        Takes about as long as an evaluation for a network of dense layers, several times that of
        150 examples for others.

        Args:
            theta: Shape (size,).

        Returns:
            Rows of the examples whose loss bends most; None where examples are shared with other
            processes, and where there are none of the model and the loss.
        """
        own = self._inside
        if own.ranks.count > 1:
            return None
        with self._evaluating():
            seen = self._evaluation.outputs(theta)
            return gauss_newton(own.network, seen, own.chunks, own.loss, own.held)

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and metric at a point, from one pass over the data.

        Args:
            theta: Shape (size,).

        Returns:
            Mean loss and mean metric; the metric is NaN where there is none.
        """
        measure, chunks = self._inside.metric, self._inside.chunks

        def own() -> list[float]:
            loss, metric = 0.0, math.nan if measure is None else 0.0
            for chunk, outputs, losses in self._each(theta):
                loss += weighted_sum(losses, chunk).item()
                if measure is not None:
                    values = self._inside.autograd.metric(measure, outputs, chunk)
                    metric += weighted_sum(values, chunk).item()
            return [loss, metric]

        loss, metric = self._inside.ranks.total(own)
        return loss / chunks.divisor, metric / chunks.total_weight

    def example_losses(self, theta: Tensor) -> Tensor:
        """The loss of each example at a point, before any weights.

        Args:
            theta: Shape (size,).

        Returns:
            Shape (examples,), float64, in the order of the data, with a group of this process's;
            NaN for an example of weight 0, which is not evaluated.
        """
        losses = torch.cat([losses.double() for _, _, losses in self._each(theta)])
        numbers = self._inside.chunks.numbers
        if numbers is None:
            return losses
        return losses.new_full((self.examples,), math.nan).index_copy(0, numbers, losses)

    @checked
    def with_dtype(self, dtype: torch.dtype) -> Problem:
        """The same problem computed in another type, for example to check a walk in float64.

        Args:
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new problem of the same model and data; more than 256 MiB of these it converts chunk
            by chunk at every evaluation. In the type that it has, it gives the same bits; in
            another its gradients are computed in full.

        Raises:
            InputError: It is another type.
        """
        _check_dtype(dtype)
        with self._evaluating():
            other, own = copy.copy(self), self._inside
            other.evaluations, chunks = 0, own.chunks
            if dtype != self.dtype:
                other._chunk_size, chunks = self._given_size, chunks.recast(dtype)
                other.precision = "exact"
            network = own.network.in_dtype(dtype)
            other._settle(network, chunks, own.loss, own.metric, own.held, own.ranks)
        return other

    @checked
    def with_chunk_size(self, size: int | None) -> Problem:
        """The same problem with its gradient computed so many examples at once.

        Args:
            size: As `chunk_size` of another such problem says; None leaves the choice.

        Returns:
            A problem that gives the bits that the other gave.
        """
        if size is None:
            return self
        size = whole("size", size, 1)
        other = copy.copy(self)
        other._chunk_size = size
        other._gradient = other._recut()
        return other

    @property
    def chunk_size(self) -> int | None:
        """Examples whose gradient is computed at once; given to another `Problem`, the same bits.

        As given; else as measured on this machine at the first gradient, which this may be. None
        where nothing was given and there is nothing to choose: each chunk has the usual size.
        """
        with self._evaluating():
            if self._gradient is None:
                self._gradient = self._choose(self.current())
            return self._chunk_size

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that make up theta, by name, in order."""
        return dict(self._inside.network.layout.shapes)

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        """One thread at a time; what goes wrong with the device is said in a sentence."""
        own = self._inside

        def fitting() -> int:
            return fitting_now(own.network, own.chunks, own.loss)

        examples = self._chunk_size or own.chunks.largest
        with self._lock, undisturbed(), told(self.device, examples, fitting):
            yield

    def _counted(self, theta: Tensor) -> Evaluation:
        """What computes the gradient."""
        self._count(1)
        return self._chosen(theta)

    def _count(self, evaluations: int) -> None:
        with self._lock:
            self.evaluations += evaluations
            self._mine.evaluations += evaluations

    def _chosen(self, theta: Tensor) -> Evaluation:
        if self._gradient is None:
            self._gradient = self._choose(theta)
        return self._gradient

    def _choose(self, theta: Tensor) -> Evaluation:
        own = self._inside
        if self._chunk_size is None:
            own.network.load(theta)
            with own.ranks.together():
                size = measured_size(own.network, own.chunks, own.loss)
            self._chunk_size = max((n for n in own.ranks.gather(size) if n), default=None)
        return self._recut()

    def _recut(self) -> Evaluation:
        """The gradient's evaluation, in chunks of the size given or measured."""
        own, size = self._inside, self._chunk_size
        if size in (None, self._given_size) or not own.chunks.kept:
            return self._evaluation
        return choose(own.network, own.chunks.recut(size), own.loss, self.precision, own.ranks)

    def _each(self, theta: Tensor) -> Iterator[tuple[Chunk, Any, Tensor]]:
        """Each chunk with its outputs and the losses of its examples."""
        with self._evaluating():
            # a GPU takes as many examples at once for outputs as for the gradient
            evaluation = self._evaluation if self.device.type == "cpu" else self._chosen(theta)
            for chunk, outputs in evaluation.outputs(theta):
                losses = self._inside.autograd.losses(outputs, chunk).detach()
                yield chunk, outputs, losses


def unrecorded(problem: Problem) -> str | None:
    """Why gradients are not replayed from a recording, "" if they are; None without recordings."""
    found = recording(problem._gradient)  # pyright: ignore[reportPrivateUsage]
    return None if found is None else found.replayed.reason


def made_here(problem: Problem) -> int:
    """Evaluations that this thread has made with a problem."""
    return problem._mine.evaluations  # pyright: ignore[reportPrivateUsage]


def recount(problem: Problem, before: int, evaluations: int) -> None:
    """Count what this thread has made since `before` as so many evaluations."""
    problem._count(before + evaluations - made_here(problem))  # pyright: ignore[reportPrivateUsage]


@contextmanager
def alone(problem: Problem) -> Generator[None]:
    """No other thread evaluates the problem meanwhile."""
    with problem._lock:  # pyright: ignore[reportPrivateUsage]
        yield


def inside(problem: Problem) -> Inside:
    """The parts of a problem, for isoloss's own rooms."""
    return problem._inside  # pyright: ignore[reportPrivateUsage]


def _layers(model: Model) -> dict[str, str]:
    """The kind of each layer of a module by its name; none of a function."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    return {name: type(part).__qualname__ for name, part in parts}


def _check_as_made(
    layers: Mapping[str, tuple[str, str]], named: Mapping[str, Tensor], shapes: Shapes
) -> None:
    """Insist that a model has the layers, each now and then, and the parameters that it had."""
    for name, (now, then) in layers.items():
        if now != then:
            raise InputError(
                f"{name!r} of the model is a {now} and was a {then} when the problem was made; "
                f"make the Problem anew"
            )
    every = [(name, tuple(tensor.shape)) for name, tensor in named.items()]
    for now, then in itertools.zip_longest(every, shapes.items()):
        if now != then:
            ones = [f"{one[0]!r} of shape {one[1]}" if one else "none" for one in (now, then)]
            raise InputError(
                f"the model's trainable parameters have changed since the problem was made, to "
                f"{ones[0]} where there was {ones[1]}; make the Problem anew"
            )


def _trains(model: Model, name: str) -> bool:
    """Whether a buffer is of a module in training mode, whose evaluations change it."""
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    if name not in buffers:
        return False
    return cast("nn.Module", model).get_submodule(name.rpartition(".")[0]).training


def _check_fine(model: Model) -> None:
    """Insist on no frozen parameter in which a model computes another loss than its copy would."""
    for name, parameter in model.named_parameters() if isinstance(model, nn.Module) else ():
        if coarse(parameter):
            raise InputError(
                f"the model's frozen parameter {name!r} is {parameter.dtype}, so that the model's "
                f"own loss is rounded and not the one that would be held; call model.float() "
                f"first, or give dtype=torch.float32 or torch.float64"
            )


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, *DTYPES.values()):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
