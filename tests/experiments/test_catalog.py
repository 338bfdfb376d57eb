"""The experiments: facts of the paper's table, and runs determined by their seed."""

import pytest
import torch

from isoloss import InputError, experiments


def test_the_table_is_the_papers():
    table = {
        name: (e.runs, e.steps, e.paper.smallest_step, e.paper.corrector_step, e.decay_epochs)
        for name in experiments.names()
        for e in [experiments.get(name)]
    }
    assert table == {
        "IRIS_FF": (5, 20_000, 1e-5, 1e-6, 500),
        "MPG_FF": (10, 30_000, 1e-5, 1e-6, 500),
        "MNIST_FF": (5, 10_000, 1e-4, 1e-4, 200),
        "MNIST_CONV": (5, 5_000, 1e-4, 1e-4, 200),
        "CIFAR10_CONV": (5, 20_000, 1e-4, 1e-4, 200),
    }


def test_iris_is_standardized_by_the_training_rows():
    data = experiments.get("IRIS_FF").data(seed=0)
    assert data.inputs.shape == (120, 4)
    assert data.test_inputs.shape == (30, 4)
    torch.testing.assert_close(data.inputs.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(data.inputs.std(0), torch.ones(4), rtol=1e-6, atol=0)
    # 50 flowers of each class, 30 of the 150 in the test file: 8, 14 and 8 of them
    assert data.targets.bincount().tolist() == [42, 36, 42]
    assert data.test_targets.bincount().tolist() == [8, 14, 8]
    assert torch.equal(data.indices, torch.arange(120))


def test_a_seed_determines_a_run_to_the_bit_whatever_the_global_generators():
    experiment = experiments.get("IRIS_FF")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = experiment.start(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12)
    again = experiment.start(seed=4)
    assert torch.equal(first.problem.current(), again.problem.current())


def test_phase_1_reaches_the_level_of_the_reference():
    # the authors' code ends at 0.0242 from its own random start (tests/golden)
    start = experiments.get("IRIS_FF").start(seed=1)
    loss, accuracy = start.problem.evaluate(start.problem.current())
    assert 0.018 < loss < 0.030
    assert accuracy > 0.98
    test_loss, test_accuracy = start.probes["test"].evaluate(start.problem.current())
    assert 0.08 < test_loss < 0.25
    assert test_accuracy > 0.9


def test_double_precision_starts_from_the_same_weights():
    experiment = experiments.get("IRIS_FF")
    single = experiment.start(seed=2)
    double = experiment.start(seed=2, dtype=torch.float64)
    assert double.problem.dtype == torch.float64
    assert torch.equal(single.problem.current().double(), double.problem.current())


@pytest.mark.parametrize(
    ("name", "hint"), [("iris_ff", "IRIS_FF"), ("MNIST", "MNIST_FF"), ("nonsense", "CIFAR10_CONV")]
)
def test_unknown_experiments_suggest_what_there_is(name, hint):
    with pytest.raises(InputError, match=hint):
        experiments.get(name)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(InputError, match=f"seed={seed}"):
        experiments.get("IRIS_FF").network(seed)
