"""One file with what some runs need: the same data to the bit, and refusals where it is another."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from tests.experiments import made
from tests.experiments.made import AUTO_MPG, placed, random_batch
from typer.testing import CliRunner

from isoloss import experiments
from isoloss.cli import app
from isoloss.errors import DataError
from isoloss.experiments import catalog, datasets, packs

CHOSEN = [
    dataclasses.replace(experiments.get(name), draw=draw)
    for name, draw in (("IRIS_FF", None), ("MPG_FF", None), ("MNIST_FF", 7), ("CIFAR10_CONV", 9))
]


@pytest.fixture
def official(own, table):
    """Small files in the places of the official ones."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    classes = generator.integers(0, 10, 60, dtype=np.uint8)
    batches = [f"cifar10/data_batch_{k}" for k in range(1, 6)] + ["cifar10/test_batch"]
    forms = {
        "auto_mpg": {"auto_mpg/auto-mpg.data": AUTO_MPG},
        "mnist": made.mnist(images, classes, images[:9], classes[:9]),
        "cifar10": {name: made.batch(*random_batch(8, k)) for k, name in enumerate(batches)},
    }
    for name, files in forms.items():
        table(name, files)
        placed(own, files)
    return own


@pytest.fixture
def packed(official, tmp_path, monkeypatch):
    """The data of the official files, for three seeds, and a pack that stands in for them."""
    known = {(one.name, seed): one.data(seed) for one in CHOSEN for seed in range(3)}
    catalog.pack(CHOSEN, range(3), file := tmp_path / "packs" / "all.safetensors")
    monkeypatch.setenv("ISOLOSS_DATA", str(file))
    return known, file


@pytest.mark.parametrize("folder", [False, True])
def test_the_data_of_a_pack_are_those_of_the_official_files(packed, folder, monkeypatch):
    known, file = packed
    if folder:
        monkeypatch.setenv("ISOLOSS_DATA", str(file.parent))
    for one in CHOSEN:
        assert datasets.at_hand(one.dataset)
        for seed in (2, 0, 1):
            for field, expected in vars(known[one.name, seed]).items():
                found = getattr(one.data(seed), field)
                assert torch.equal(found, expected)
                assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    one.data(0).test_inputs.zero_()  # a run's own
    assert torch.equal(one.data(0).test_inputs, known[one.name, 0].test_inputs)


def test_other_seeds_and_draws_are_refused(packed, refuses):
    mnist = CHOSEN[2]
    with refuses("all.safetensors", "seed 3", "mnist", "more runs", error=DataError):
        mnist.data(3)
    with refuses("seed 0", "mnist", error=DataError):
        dataclasses.replace(mnist, draw=30).data(0)


def test_any_other_byte_is_noticed(packed, refuses, monkeypatch):
    _, file = packed
    whole = file.read_bytes()
    for place in range(len(whole) // 2, len(whole), len(whole) // 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        said: list[str] = []
        for one in CHOSEN:
            try:
                packs.read(file, one.dataset)
            except DataError as error:
                said.append(str(error))
        assert len(said) == 1
        assert "was changed after it was written; pack it again" in said[0]
    for cut in (whole[:-1], whole[:20], b""):
        file.write_bytes(cut)
        with refuses("all.safetensors cannot be read", "pack it again", error=DataError):
            CHOSEN[2].data(0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_are_packed_without_loss(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 5, 6), dtype=np.uint8)
    shape = np.array(images.shape)
    assert np.array_equal(packs._inflated(packs._deflated(images), shape), images)


def test_the_command_packs_the_draws_of_all_runs_and_says_how_large_they_are(official, tmp_path):
    file = tmp_path / "mpg.safetensors"
    done = CliRunner().invoke(app, ["data", "pack", "MPG_FF", "IRIS_FF", str(file), "--runs", "2"])
    assert done.exit_code == 0
    for words in (r"auto_mpg: \d+\.\d kB", r"iris: \d\.\d kB", "for seeds 0 to 1"):
        assert re.search(words, done.stdout)
    assert packs.holds(file, "iris")
    assert not packs.holds(file, "mnist")
    refused = CliRunner().invoke(app, ["data", "pack", "MPG_FF", str(tmp_path / "mpg.zip")])
    assert refused.exit_code == 2
    assert "must end in .safetensors" in refused.output
    alone = CliRunner().invoke(app, ["data", "pack", "all"])
    assert alone.exit_code == 2
    assert "must end in .safetensors, got all" in alone.output


def test_the_command_packs_every_experiment_by_default(tmp_path, monkeypatch):
    asked = []

    def pack(chosen, seeds, file):
        asked.extend(one.name for one in chosen)
        file.touch()
        return {}

    monkeypatch.setattr(catalog, "pack", pack)
    done = CliRunner().invoke(app, ["data", "pack", str(tmp_path / "every.safetensors")])
    assert (done.exit_code, asked) == (0, catalog.names())


def test_verify_looks_into_a_pack(packed):
    done = CliRunner().invoke(app, ["data", "verify", "mnist"])
    assert (done.exit_code, "which is whole" in done.stdout.replace("\n", " ")) == (0, True)
