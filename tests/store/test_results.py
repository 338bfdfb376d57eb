"""Results: what is there, what is not, and every file read once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path as FilePath

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from tests.store.made import KINDS, ZEROS, made_path

from isoloss import open_results
from isoloss.files import digest_of, read_json, write_json
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


def test_only_folders_named_as_runs_are_runs_and_others_get_a_note(tmp_path):
    folder = walk(tmp_path, 0)
    for name in ("run-000 (copy)", "run-0002", "run-1", "run-x", "backup"):
        shutil.copytree(folder, folder.with_name(name))
    (folder.parent / "run-003").write_text("a file")
    (folder.parent / "replaced").mkdir()
    (folder.parent.parent / ".DS_Store").write_text("")
    results = open_results(tmp_path)
    assert results.methods("IRIS_FF") == ["paper"]
    assert len(results.paths("IRIS_FF", "paper")) == 1
    assert results.unfinished("IRIS_FF", "paper") == dict.fromkeys(
        ["backup", "run-000 (copy)", "run-0002", "run-1", "run-x"],
        "left out: its name is not that of a run, such as run-000",
    )
    shutil.copytree(decay(tmp_path, 0), folder.parents[2] / "decay" / "run-000 (copy)")
    assert results.decay("IRIS_FF")["run"].tolist() == [0, 0]
    assert list(results.decay_unfinished("IRIS_FF")) == ["run-000 (copy)"]


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    for index in (1000, 0, 999):
        walk(tmp_path, index)
    paths = open_results(tmp_path).paths("IRIS_FF", "paper")
    assert [path.metadata["config"]["seed"] for path in paths] == [5, 1004, 1005]


def test_a_copy_of_a_run_under_a_right_name_is_left_out(tmp_path):
    for make, unfinished in (
        (walk, lambda results: results.unfinished("IRIS_FF", "paper")),
        (decay, lambda results: results.decay_unfinished("IRIS_FF")),
    ):
        folder = make(tmp_path, 0)
        make(tmp_path, 1)
        shutil.copytree(folder, folder.with_name("run-007"))
        found = unfinished(open_results(tmp_path))
        assert found == {"run-007": "left out: it is a copy of run-000: it has the same seed, 5"}
    config = read_json(folder.with_name("run-001") / "config.json")
    assert config["config"]["seed"] == 6
    assert open_results(tmp_path).decay("IRIS_FF")["run"].tolist() == [0, 0, 1, 1]


def test_runs_in_the_folder_of_others_are_left_out(tmp_path):
    begun = walk(tmp_path, 0)
    shutil.copytree(begun.parent, begun.parent.with_name("paper (copy)"))
    results = open_results(tmp_path)
    assert results.paths("IRIS_FF", "paper (copy)") == []
    (why,) = results.unfinished("IRIS_FF", "paper (copy)").values()
    assert why == "left out: its method is paper, which is not that of its folder"
    shutil.copytree(decay(tmp_path, 0), begun.with_name("run-001"))
    shutil.copytree(begun, tmp_path / "IRIS_FF" / "decay" / "run-001")
    assert len(results.paths("IRIS_FF", "paper")) == 1
    assert results.decay("IRIS_FF")["run"].tolist() == [0, 0]
    assert "holds something else" in results.unfinished("IRIS_FF", "paper")["run-001"]
    assert "no run of weight decay" in results.decay_unfinished("IRIS_FF")["run-001"]


def test_a_run_of_another_network_than_the_others_is_left_out(tmp_path):
    for index in range(3):
        walk(tmp_path, index)
    small = made_path().points[:, :2]
    walk(tmp_path, 3, points=small, shapes={"weight": (1, 2)})
    results = open_results(tmp_path)
    assert len(results.paths("IRIS_FF", "paper")) == 3
    assert results.unfinished("IRIS_FF", "paper") == {
        "run-003": "left out: it has 2 parameters, the others 3"
    }


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("config.json", b'"seed": 5', b'"seed": 1e905'),
        ("config.json", b'"seed": 5', b'"seed": "5"'),
        ("outcome.json", b'"level": 0.', b'"level": "a", "b": 0.'),
        ("outcome.json", b'"shapes": [', b'"shapes": [3, '),
        ("outcome.json", b'"frozen": {}', b'"frozen": [3]'),
        ("outcome.json", b'"sha256": "', b'"sha256": {}, "x": "'),
    ],
)
def test_any_damage_of_a_run_concerns_that_run_alone(tmp_path, name, before, after):
    walk(tmp_path, 1)
    file = walk(tmp_path, 0) / name
    content = file.read_bytes()
    assert before in content
    file.write_bytes(content.replace(before, after, 1))
    for sealed_again in (False, True):
        if sealed_again:
            reseal(file)
        results = open_results(tmp_path)
        assert [path.metadata["config"]["seed"] for path in results.paths("IRIS_FF", "paper")] == [
            6
        ]
        assert list(results.unfinished("IRIS_FF", "paper")) == ["run-000"]


def reseal(file):
    content = json.loads(file.read_text())
    for key in ("format_version", "isoloss", "sha256"):
        content.pop(key, None)
    with contextlib.suppress(ValueError):  # no number of JSON
        write_json(file, content)
    if file.name == "config.json":
        ending = read_json(file.with_name("outcome.json"))
        write_json(
            file.with_name("outcome.json"), {**ending, "config": digest_of(content["config"])}
        )


def test_weights_take_memory_only_once_they_are_used_and_stay_those_of_their_run(tmp_path):
    def anonymous():
        lines = FilePath("/proc/self/status").read_text().splitlines()
        return next(int(one.split()[1]) * 1024 for one in lines if one.startswith("RssAnon"))

    points = torch.randn(10, 1_000_000, generator=torch.Generator().manual_seed(0))
    folder = walk(
        tmp_path, 0, points=points, point_steps=list(range(10)), shapes={"w": (1_000_000,)},
        steps=pd.DataFrame({**ZEROS, "kind": KINDS}).loc[[0, *[1] * 9]].assign(step=range(10)),
    )  # fmt: skip
    before = anonymous()
    (path,) = open_results(tmp_path).paths("IRIS_FF", "paper")
    assert anonymous() - before < 10e6 < points.nbytes
    assert torch.equal(path.points[3], points[3])
    path.points[0] = 7.0  # a copy of one's own
    walk_again = made_path(level=9.0)
    save_walk(folder, walk_again)
    assert torch.equal(path.points[3], points[3])
    assert torch.equal(
        open_results(tmp_path).paths("IRIS_FF", "paper")[0].points, walk_again.points
    )


def test_a_file_replaced_while_it_is_mapped_is_not_believed(tmp_path, monkeypatch):
    folder = walk(tmp_path, 0)
    file = folder / "points.safetensors"

    def replaced(*given):
        found = safe_open(*given)
        file.with_suffix(".new").write_bytes(file.read_bytes())
        file.with_suffix(".new").replace(file)
        return found

    monkeypatch.setattr("isoloss.files.safe_open", replaced)
    (why,) = open_results(tmp_path).unfinished("IRIS_FF", "paper").values()
    assert why == f"{file} was replaced while it was read"
