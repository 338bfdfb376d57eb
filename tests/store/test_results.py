"""Results: what is there, what is not, and every file read once."""

from __future__ import annotations

import dataclasses
import hashlib

import pandas as pd
import pytest
import torch
from tests.store.made import made_path

from isoloss import open_results
from isoloss.store import MEASURED, run_folder
from isoloss.store.folder import Stack, begin, save_decay, save_failure, save_walk


def walk(out, index=0, method="paper", experiment="IRIS_FF", kind="traverse", **changes):
    folder = run_folder(out, experiment, method, index, kind)
    begin(folder, {"seed": 5 + index}, {})
    path = made_path(**changes)
    save_walk(folder, dataclasses.replace(path, points=path.points + index, method=method))
    return folder


def decay(out, index=0, method=None, kind="decay", experiment="IRIS_FF"):
    folder = run_folder(out, experiment, method, index, kind)
    begin(folder, {"seed": 5 + index}, {})
    table = pd.DataFrame(0.0, columns=[*MEASURED], index=range(4))
    table = table.assign(epoch=[1, 1, 2, 2], penalty=[0.0, 0.1] * 2, test_loss=index)
    stack = Stack(table, torch.full((2, 3), float(index)), torch.tensor([-1, 2]))
    chosen = Stack(table.assign(validation_loss=7.0, validation_metric=8.0), stack.ends, stack.lost)
    start, indices = torch.zeros(3), torch.arange(2)
    save_decay(folder, stack, None if method else chosen, start=start, indices=indices)
    return folder


def test_results_list_what_is_there(tmp_path):
    walk(tmp_path, 0)
    for index in (1, 2):
        begin(run_folder(tmp_path, "IRIS_FF", "paper", index), {"seed": index}, {})
    save_failure(run_folder(tmp_path, "IRIS_FF", "paper", 1), "no memory")
    damaged = walk(tmp_path, 3)
    (damaged / "points.safetensors").write_bytes(b"torn")
    results = open_results(tmp_path)
    assert results.experiments() == ["IRIS_FF"]
    assert results.methods("IRIS_FF") == ["paper"]
    assert [path.metadata["config"]["seed"] for path in results.paths("IRIS_FF", "paper")] == [5]
    unfinished = results.unfinished("IRIS_FF", "paper")
    assert unfinished.pop("run-003").startswith(str(damaged / "points.safetensors"))
    assert unfinished == {"run-001": "no memory", "run-002": "not finished"}


def test_weight_decay_is_read_back(tmp_path):
    decay(tmp_path, 0)
    damaged = decay(tmp_path, 1)
    decay(tmp_path, 2)
    (damaged / "epochs.parquet").unlink()
    results = open_results(tmp_path)
    table = results.decay("IRIS_FF")
    assert table["run"].tolist() == [0, 0, 2, 2]
    assert table["seed"].tolist() == [5, 5, 7, 7]
    assert table["status"].tolist() == ["finished", "non_finite"] * 2
    assert table["lost_epoch"].tolist() == [-1, 2] * 2
    assert table["validation_loss"].tolist() == [7.0] * 4
    assert results.decay_epochs("IRIS_FF")["epoch"].tolist() == [1, 1, 2, 2] * 2
    assert results.decay_points("IRIS_FF")[:, 0].tolist() == [0.0, 0.0, 2.0, 2.0]
    assert list(results.decay_unfinished("IRIS_FF")) == ["run-001"]
    assert "epochs.parquet is missing" in results.decay_unfinished("IRIS_FF")["run-001"]


def test_comparisons_are_read_back(tmp_path):
    walk(tmp_path, 1, "sqp", kind="after-decay")
    decay(tmp_path, 0, "sqp", "equivalent")
    results = open_results(tmp_path)
    assert len(results.after_decay("IRIS_FF", "sqp")) == 1
    assert results.equivalent("IRIS_FF", "sqp")["penalty"].tolist() == [0.0, 0.1]
    assert results.after_decay("IRIS_FF", "paper") == []
    assert len(results.equivalent("IRIS_FF", "paper")) == 0
    assert results.decay_points("IRIS_FF").shape == (0, 0)


def test_of_an_experiment_every_table_and_tensor_is_read_once(tmp_path, monkeypatch):
    for k in range(2):
        walk(tmp_path, k)
        decay(tmp_path, k)
    walk(tmp_path, 0, experiment="MPG_FF")
    hashed = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        hashlib, "sha256", lambda data=b"": hashed.append(len(data)) or sha256(data)
    )
    results = open_results(tmp_path)
    for _ in range(3):
        results.walks("IRIS_FF")
        results.unfinished("IRIS_FF", "paper")
        results.decay("IRIS_FF")
        results.decay_epochs("IRIS_FF")
    sizes = {
        file: file.stat().st_size
        for file in tmp_path.glob("IRIS_FF/**/*")
        if file.suffix in (".parquet", ".safetensors") and "decay" not in str(file)
    }
    assert len(sizes) == 4
    for size in set(sizes.values()):
        assert hashed.count(size) <= list(sizes.values()).count(size)
    (first, _), again = results.paths("IRIS_FF", "paper"), results.paths("IRIS_FF", "paper")[0]
    assert again is first
    results.paths("MPG_FF", "paper")  # the memory of one experiment at a time
    assert results.paths("IRIS_FF", "paper")[0] is not first


def test_a_run_done_again_is_read_again(tmp_path):
    folder = walk(tmp_path, 0)
    results = open_results(tmp_path)
    assert results.paths("IRIS_FF", "paper")[0].level != 9.0
    save_walk(folder, made_path(level=9.0))
    assert results.paths("IRIS_FF", "paper")[0].level == 9.0
    walk(tmp_path, 1)
    assert len(results.paths("IRIS_FF", "paper")) == 2


def test_missing_results_say_how_to_make_them(tmp_path, refuses, monkeypatch):
    with refuses("isoloss reproduce"):
        open_results(tmp_path / "nothing")
    with refuses("isoloss traverse IRIS_FF", "holds no walk"):
        open_results(tmp_path).walks("IRIS_FF")
    with refuses("folder must be a path"):
        open_results(None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_results("~").folder == tmp_path


@pytest.mark.parametrize("name", ["members.parquet", "points.safetensors"])
def test_damage_to_weight_decay_is_found_before_the_networks_are_asked_for(tmp_path, name):
    folder = decay(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert name in open_results(tmp_path).decay_unfinished("IRIS_FF")["run-000"]
