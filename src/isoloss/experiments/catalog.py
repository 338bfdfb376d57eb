"""The five experiments of the paper as data, and the networks they train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from isoloss.arguments import checked, whole
from isoloss.errors import unknown
from isoloss.experiments import datasets, packs
from isoloss.flat import usable_device, vector
from isoloss.methods import Method, Paper, get_method
from isoloss.names import load_into
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.subject import Start
from isoloss.training import TrainingState, train

# weights of the squared norm in the paper's weight decay
PENALTIES = (0.0, *(float(f"1e{power}") for power in range(-6, 7)))


@dataclass(frozen=True)
class Data:
    """What one run trains and tests on; inputs are float32."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    indices: Tensor  # which of the data set's training examples were drawn, int64


@dataclass(frozen=True)
class Experiment:
    """One experiment; a seed determines a run of it completely.

    Attributes:
        name: As in the paper.
        dataset: Name of its data set.
        build: Makes its network, not yet initialized.
        steps: Predictor steps of the walk in the paper.
        paper: The paper's method with this experiment's step lengths.
        draw: Training examples drawn at random; None takes all.
        loss: Name of its per-example loss.
        metric: Name of its metric.
        runs: Runs of the walk in the paper.
        epochs: Epochs of phase 1.
        decay_runs: Runs of weight decay in the paper.
        decay_epochs: Epochs of training with weight decay in the paper.
        penalties: Penalties of weight decay in the paper.
        default_dtype: Type in which it is evaluated.
    """

    name: str
    dataset: str
    build: Callable[[], nn.Sequential]
    steps: int
    paper: Paper
    draw: int | None = None
    loss: str = "cross_entropy"
    metric: str = "accuracy"
    runs: int = 5
    epochs: int = 100
    decay_runs: int = 15
    decay_epochs: int = 200
    penalties: tuple[float, ...] = PENALTIES
    default_dtype: str = "float32"

    @property
    def identity(self) -> dict[str, str]:
        """Its name says it all."""
        return {}

    def prepare(self) -> None:
        """Fetch its data where they are missing."""
        if not datasets.at_hand(self.dataset):
            datasets.fetch(self.dataset)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self._uninitialized().parameters())

    @checked
    def data(self, seed: int) -> Data:
        """The training and test examples of a run, on the CPU; the seed determines the draw.

        Raises:
            DataError: The data set is not here and cannot be fetched.
        """
        seed = whole("seed", seed)
        rows, (examples, targets, test_examples, test_targets) = datasets.draw(
            self.dataset, self.draw, seed
        )
        inputs, test_inputs = map(datasets.floats, (examples, test_examples))
        if isinstance(self._uninitialized()[0], nn.Linear):
            inputs, test_inputs = (part.reshape(len(part), -1) for part in (inputs, test_inputs))
        arrays = inputs, targets, test_inputs, test_targets, rows
        return Data(*map(torch.from_numpy, arrays))

    @checked
    def network(self, seed: int) -> nn.Module:
        """The network at its random initialization by the seed, on the CPU in float32."""
        seed = whole("seed", seed)
        return glorot_normal(self._uninitialized(), seed)

    @checked
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
        """Phase 1: draw the examples, initialize the network, train it by Adam.

        Args:
            seed: Determines everything.
            device: Where to train and evaluate.
            dtype: Type in which the problem is evaluated; training is in float32.
            weights: Result of an earlier training, shape (parameters,), taken instead of training.
            training: An earlier state of the training, to resume from.
            after_epoch: Called with the state of the training after each epoch.
            chunk_size: Training examples evaluated at once; None measures, as `Problem` does.

        Returns:
            The trained network with its problem and probes.

        Raises:
            DataError: The data set is not here and cannot be fetched.
        """
        device = usable_device(device)
        if weights is not None:
            weights = vector("weights", weights, self.parameters)
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
        make = partial(Problem, model, self.loss, metric=self.metric, dtype=dtype)
        problem = make((inputs, targets), chunk_size=chunk_size)
        test = make((data.test_inputs, data.test_targets))
        return Start(problem, {"test": test}, model, {"indices": data.indices})

    def _uninitialized(self) -> nn.Sequential:
        # torch initializes layers from its global generator
        with torch.random.fork_rng(devices=[]):
            return self.build()

    def stop(self) -> Stop:
        """The walk's end in the paper: its number of predictor steps."""
        return Stop(steps=self.steps)

    @checked
    def method(self, name: str) -> Method:
        """The method of that name; the paper's has step lengths of its own in each experiment."""
        return self.paper if name == self.paper.name else get_method(name)

    @checked
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


def dense(*sizes: int) -> nn.Sequential:
    """A feed-forward network with tanh hidden layers and linear outputs, of these widths."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def convolutional(channels: int, size: int, filters: int, hidden: int) -> nn.Sequential:
    """Two valid 3x3 convolutions, each averaged over 2x2, then two dense layers to 10 classes."""
    side = ((size - 2) // 2 - 2) // 2
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(filters, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(filters * side * side, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 10),
    )


def glorot_normal(network: nn.Module, seed: int) -> nn.Module:
    """Initialize in place as Keras' `GlorotNormal` (Glorot and Bengio, 2010), biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            outputs, inputs, *field = layer.weight.shape
            # truncation at two standard deviations leaves a unit normal the last number
            std = math.sqrt(2 / (math.prod(field) * (outputs + inputs))) / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


_FINE = Paper(smallest_step=1e-5, corrector_step=1e-6)
_COARSE = Paper(smallest_step=1e-4, corrector_step=1e-4)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="IRIS_FF",
            dataset="iris",
            build=partial(dense, 4, 100, 100, 100, 100, 3),
            steps=20_000,
            paper=_FINE,
            decay_epochs=500,
        ),
        Experiment(
            name="MPG_FF",
            dataset="auto_mpg",
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
            steps=10_000,
            paper=_COARSE,
        ),
        Experiment(
            name="MNIST_CONV",
            dataset="mnist",
            draw=1000,
            build=partial(convolutional, channels=1, size=28, filters=20, hidden=100),
            steps=5_000,
            paper=_COARSE,
        ),
        Experiment(
            name="CIFAR10_CONV",
            dataset="cifar10",
            draw=1000,
            build=partial(convolutional, channels=3, size=32, filters=60, hidden=300),
            steps=20_000,
            paper=_COARSE,
        ),
    )
}


def names() -> list[str]:
    """The names of the experiments, in the paper's order."""
    return list(EXPERIMENTS)


@checked
def get(name: str) -> Experiment:
    """The experiment of that name, for example `"IRIS_FF"`.

    Raises:
        InputError: There is none; the nearest names are suggested.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def pack(chosen: Sequence[Experiment], seeds: Sequence[int], file: Path) -> dict[str, int]:
    """Write what runs of experiments need of their data sets into one file.

    `$ISOLOSS_DATA` may name that file where the data sets themselves are not at hand.

    Args:
        chosen: The experiments.
        seeds: The seeds of their runs.
        file: Where to write it, such as `data.safetensors`.

    Returns:
        For each data set the bytes it takes.

    Raises:
        DataError: A data set is not here and cannot be fetched.
    """
    sets: dict[str, packs.Packed] = {}
    for name in dict.fromkeys(one.dataset for one in chosen):
        dataset, draws = datasets.load(name), {one.draw for one in chosen if one.dataset == name}
        total = len(dataset.train_targets)
        every = [
            np.arange(total) if count is None else datasets.drawn(total, count, seed)
            for count in draws
            for seed in seeds
        ]
        rows = np.unique(np.concatenate(every))
        examples, targets = dataset.train_examples[rows], dataset.train_targets[rows]
        fewer = dataset._replace(train_examples=examples, train_targets=targets)
        sets[name] = packs.Packed(fewer, rows, total)
    return packs.write(file, sets)
