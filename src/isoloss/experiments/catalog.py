"""The five experiments of the paper as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from isoloss.errors import InputError, unknown
from isoloss.experiments import datasets
from isoloss.experiments.networks import convolutional, dense, glorot_normal
from isoloss.flat import load_into
from isoloss.methods import Method, Paper, get_method
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.subject import Start
from isoloss.training import TrainingState, train

PENALTIES = (0.0, *(float(f"1e{power}") for power in range(-6, 7)))
"""Weights of the squared norm in the paper's weight decay."""


@dataclass(frozen=True)
class Data:
    """What one run trains and tests on.

    Attributes:
        inputs: Training inputs, float32.
        targets: Training targets.
        test_inputs: All test inputs, float32.
        test_targets: All test targets.
        indices: Which of the data set's training examples were drawn, int64.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Experiment:
    """One experiment; a seed determines a run of it completely.

    Attributes:
        name: As in the paper.
        dataset: Name of its data set.
        draw: Training examples drawn at random; None takes all.
        build: Makes its network, not yet started.
        loss: Name of its per-example loss.
        metric: Name of its metric.
        runs: Runs of the walk in the paper.
        steps: Predictor steps of the walk in the paper.
        paper: The paper's method with this experiment's step lengths.
        decay_epochs: Epochs of training with weight decay in the paper.
        epochs: Epochs of phase 1.
        decay_runs: Runs of weight decay in the paper.
        penalties: Penalties of weight decay in the paper.
        default_dtype: Type in which it is evaluated.
    """

    name: str
    dataset: str
    draw: int | None
    build: Callable[[], nn.Sequential]
    loss: str
    metric: str
    runs: int
    steps: int
    paper: Paper
    decay_epochs: int
    epochs: int = 100
    decay_runs: int = 15
    penalties: tuple[float, ...] = PENALTIES
    default_dtype: str = "float32"

    @property
    def identity(self) -> dict[str, str]:
        """Its name says it all."""
        return {}

    def prepare(self) -> None:
        """Fetch its data where they are not at hand."""
        if not datasets.at_hand(self.dataset):
            datasets.fetch(self.dataset)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self._unstarted().parameters())

    def data(self, seed: int) -> Data:
        """The training and test examples of a run.

        Args:
            seed: Determines the draw.

        Returns:
            The examples as tensors on the CPU.

        Raises:
            DataError: The data set is not at hand and cannot be fetched.
        """
        _check_seed(seed)
        whole = datasets.load(self.dataset)
        drawn, indices = whole, np.arange(len(whole.train_targets))
        if self.draw is not None:
            drawn, indices = datasets.draw(whole, self.draw, seed)
        flat = isinstance(self._unstarted()[0], nn.Linear)
        inputs, test_inputs = (
            torch.from_numpy(drawn.train_inputs),
            torch.from_numpy(drawn.test_inputs),
        )
        return Data(
            inputs=inputs.flatten(1) if flat else inputs,
            targets=torch.from_numpy(drawn.train_targets),
            test_inputs=test_inputs.flatten(1) if flat else test_inputs,
            test_targets=torch.from_numpy(drawn.test_targets),
            indices=torch.from_numpy(indices),
        )

    def network(self, seed: int) -> nn.Module:
        """The network at its random start.

        Args:
            seed: Determines all layers.

        Returns:
            The network on the CPU, float32.
        """
        _check_seed(seed)
        return glorot_normal(self._unstarted(), seed)

    def start(
        self,
        seed: int = 0,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        weights: Tensor | None = None,
        training: TrainingState | None = None,
        after_epoch: Callable[[TrainingState], object] | None = None,
        chunk_size: int | None = None,
    ) -> Start:
        """Phase 1: draw the examples, start the network, train it by Adam.

        Args:
            seed: Determines everything.
            device: Where to train and evaluate.
            dtype: Type in which the problem is evaluated; training is in float32.
            weights: What training ended with before, flat, shape (parameters,): there is none then.
            training: Where it stood before, to go on from there.
            after_epoch: Called with the state of the training after each epoch.
            chunk_size: Training examples evaluated at once; None measures, as `Problem` does.

        Returns:
            The trained network with its problem and probes.

        Raises:
            DataError: The data set is not at hand and cannot be fetched.
        """
        data = self.data(seed)
        model = self.network(seed).to(device)
        inputs, targets = data.inputs.to(device), data.targets.to(device)
        if weights is None:
            train(
                model,
                self.loss,
                inputs,
                targets,
                epochs=self.epochs,
                state=training,
                after_epoch=after_epoch,
            )
        else:
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
            load_into(model, weights, shapes)
        problem, test = (
            Problem(model, self.loss, pair, metric=self.metric, dtype=dtype, chunk_size=size)
            for pair, size in (
                ((inputs, targets), chunk_size),
                ((data.test_inputs, data.test_targets), None),
            )
        )
        return Start(problem, {"test": test}, model, {"indices": data.indices})

    def _unstarted(self) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):  # torch starts layers from its global generator
            return self.build()

    def stop(self) -> Stop:
        """The walk's end in the paper: its number of predictor steps."""
        return Stop(steps=self.steps)

    def method(self, name: str) -> Method:
        """The method of that name; the paper's has step lengths of its own in each experiment."""
        return self.paper if name == self.paper.name else get_method(name)

    def record(self, method: Method) -> Record:
        """What is kept of a walk.

        The test set is measured at every point where it is small, and less often where it costs
        several gradients; of a method with short steps the weights of every `stride`-th point are
        kept, all along.
        """
        stride = method.stride
        return Record(
            probes_every=1 if self.draw is None else max(5, stride),
            points_every=stride,
            points_at_most=200 if stride == 1 else None,
        )


_FINE = Paper(smallest_step=1e-5, corrector_step=1e-6)
_COARSE = Paper(smallest_step=1e-4, corrector_step=1e-4)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="IRIS_FF",
            dataset="iris",
            draw=None,
            build=partial(dense, 4, 100, 100, 100, 100, 3),
            loss="cross_entropy",
            metric="accuracy",
            runs=5,
            steps=20_000,
            paper=_FINE,
            decay_epochs=500,
        ),
        Experiment(
            name="MPG_FF",
            dataset="auto_mpg",
            draw=None,
            build=partial(dense, 9, 100, 100, 100, 100, 1),
            loss="mse",
            metric="mse",
            runs=10,
            steps=30_000,
            paper=_FINE,
            decay_epochs=500,
        ),
        Experiment(
            name="MNIST_FF",
            dataset="mnist",
            draw=1000,
            build=partial(dense, 784, 100, 100, 100, 10),
            loss="cross_entropy",
            metric="accuracy",
            runs=5,
            steps=10_000,
            paper=_COARSE,
            decay_epochs=200,
        ),
        Experiment(
            name="MNIST_CONV",
            dataset="mnist",
            draw=1000,
            build=partial(convolutional, channels=1, size=28, filters=20, hidden=100),
            loss="cross_entropy",
            metric="accuracy",
            runs=5,
            steps=5_000,
            paper=_COARSE,
            decay_epochs=200,
        ),
        Experiment(
            name="CIFAR10_CONV",
            dataset="cifar10",
            draw=1000,
            build=partial(convolutional, channels=3, size=32, filters=60, hidden=300),
            loss="cross_entropy",
            metric="accuracy",
            runs=5,
            steps=20_000,
            paper=_COARSE,
            decay_epochs=200,
        ),
    )
}


def names() -> list[str]:
    """The names of the experiments, in the paper's order."""
    return list(EXPERIMENTS)


def get(name: str) -> Experiment:
    """The experiment of that name.

    Args:
        name: For example `"IRIS_FF"`.

    Returns:
        The experiment.

    Raises:
        InputError: There is none; the nearest names are suggested.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed} is not possible; give a whole number from 0 to 2^63 - 1")
