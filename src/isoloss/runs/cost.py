"""What a run of an experiment costs on this machine, from a short measurement."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from isoloss import experiments
from isoloss.evaluation.arithmetic import one_thread
from isoloss.problem import Problem

IMAGES = 100
SECONDS = 0.1


@dataclass(frozen=True)
class Cost:
    """What a run takes of one core.

    Attributes:
        evaluations_per_second: Of the loss and its gradient over the full training set.
        paper_walk_seconds: Of the paper's walk: its predictor steps, an evaluation each, and the
            test set as often as the walk records it. Corrections and what a step takes beside come
            on top.
    """

    evaluations_per_second: float
    paper_walk_seconds: float


@functools.cache
def cost(name: str) -> Cost:
    """Measure what a run of an experiment costs; once a process, in some tenths of a second.

    CPU time of one thread, the least of several, at the network's random start in float32; images
    are sampled.

    Args:
        name: The experiment; its data has to be at hand.

    Returns:
        The cost.
    """
    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    record = experiment.record(experiment.paper)
    few = IMAGES if data.inputs.ndim == 4 else None
    train, test = (
        Problem(model, experiment.loss, (x[:few], y[:few]), chunk_size=50 if few else None)
        for x, y in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    theta = train.current()
    with one_thread():
        gradient = _seconds(lambda: train.loss_and_grad(theta)) * len(data.inputs) / train.examples
        measured = _seconds(lambda: test.evaluate(theta)) * len(data.test_inputs) / test.examples
    step = gradient + measured / record.probes_every
    return Cost(1 / gradient, experiment.steps * step)


def _seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, the least of some, after one that fills caches."""
    run()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < SECONDS:
        began = time.thread_time()
        run()
        taken.append(time.thread_time() - began)
    return min(taken)
