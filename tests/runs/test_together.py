"""Runs of weight decay in one process and one stack, as on a GPU: what each writes is its own."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from isoloss import experiments, open_results
from isoloss.cli import app
from isoloss.runs import pool
from isoloss.runs.decay import DecayRun, decay_settings
from isoloss.runs.run import Run
from isoloss.store import run_folder
from isoloss.store.folder import CHECKPOINT
from isoloss.store.lock import only_writer
from isoloss.training import Training

IRIS = experiments.get("IRIS_FF")
PENALTIES = (0.0, 1e-3, 1.0)


def runs(out, count=3, every=30.0, penalties=PENALTIES):
    settings = decay_settings(IRIS, penalties, 5, ["record_every=2"])
    folders = [run_folder(out, "IRIS_FF", None, k, "decay") for k in range(count)]
    return [DecayRun(k, 3 + k, folder, settings, every) for k, folder in enumerate(folders)]


def together(out, cancelled=bool, **options):
    """The last news of each, in the order in which they came."""
    told = []
    DecayRun.execute_all(runs(out, **options), told.append, cancelled)
    return {news.index: news for news in told if news.phase == "done"}


def after(epochs):
    """Stops when three runs have been asked so often."""
    asked = iter([False] * 3 * epochs)
    return lambda: next(asked, True)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")
    assert [news.ending for news in together(out).values()] == ["finished"] * 3
    return open_results(out)


def same(one, other, **tolerance):
    pd.testing.assert_frame_equal(
        one.decay_epochs("IRIS_FF"), other.decay_epochs("IRIS_FF"), **tolerance
    )
    points = other.decay_points("IRIS_FF")
    close = {"rtol": tolerance.get("rtol", 0), "atol": tolerance.get("atol", 0)}
    torch.testing.assert_close(one.decay_points("IRIS_FF"), points, **close)


def test_each_run_is_what_it_is_alone(joint, tmp_path):
    for one in runs(tmp_path):
        assert one.execute(lambda news: None, bool).done == one.total == 10
    same(joint, open_results(tmp_path), rtol=1e-4, atol=1e-5)
    assert (joint.decay("IRIS_FF")["validation_loss"]).notna().all()


@pytest.mark.parametrize("epochs", [2, 5, 7])
def test_interrupted_they_continue_together_to_the_bit(joint, tmp_path, epochs):
    told = together(tmp_path, after(epochs))
    assert [news.ending for news in told.values()] == ["interrupted"] * 3
    assert [news.ending for news in together(tmp_path).values()] == ["finished"] * 3
    same(joint, open_results(tmp_path))


def test_one_that_stands_elsewhere_does_what_it_lacks(joint, tmp_path):
    together(tmp_path, after(3))
    first, *_ = runs(tmp_path)
    for file in (first.folder / CHECKPOINT / "whole").iterdir():
        file.unlink()
    told = together(tmp_path)
    assert [(news.ending, news.done) for news in told.values()] == [("finished", 10)] * 3
    same(joint, open_results(tmp_path), rtol=1e-4, atol=1e-5)


def test_what_memory_does_not_hold_is_trained_in_parts(joint, tmp_path, monkeypatch):
    epoch, sizes = Training.epoch, []

    def small(self, state):
        sizes.append(self.members)
        if self.members > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        epoch(self, state)

    monkeypatch.setattr(Training, "epoch", small)
    assert [news.ending for news in together(tmp_path).values()] == ["finished"] * 3
    assert sizes == [9, *[3] * 10, *[6] * 10]
    same(joint, open_results(tmp_path), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(Training, "epoch", lambda *_: exec("raise torch.OutOfMemoryError('full')"))
    told = together(tmp_path / "none")
    assert {news.ending for news in told.values()} == {
        "cpu has too little memory to train 3 networks at once (full); free some of it, or give "
        "fewer penalties"
    }


def test_an_error_is_the_last_word_of_all_and_a_locked_folder_of_one(tmp_path, monkeypatch):
    epoch = Training.epoch
    monkeypatch.setattr(Training, "epoch", lambda *_: 1 // 0)
    told = together(tmp_path)
    assert {news.ending.split(":")[0] for news in told.values()} == {"ZeroDivisionError"}

    def lost(*_):
        raise RuntimeError("CUDA error: the launch timed out\nCUDA kernel errors might be ...")

    monkeypatch.setattr(Training, "epoch", epoch)
    monkeypatch.setattr(Training, "_differentiate", lost)
    said = {news.ending for news in together(tmp_path).values()}
    assert said == {
        "cpu failed (CUDA error: the launch timed out); run the same command again to continue "
        "from the last checkpoint"
    }
    monkeypatch.undo()
    with only_writer(runs(tmp_path)[1].folder):
        told = together(tmp_path)
    assert [told[k].failed for k in range(3)] == [False, True, False]
    assert "is being written to by process" in told[1].ending
    assert [news.ending for news in together(tmp_path).values()] == ["finished"] * 3


def test_runs_with_penalties_of_their_own_share_a_stack(tmp_path, monkeypatch):
    several = [
        DecayRun(k, 3, tmp_path / f"run-{k}", decay_settings(IRIS, [penalty], 2, ["held_out=0"]))
        for k, penalty in enumerate(PENALTIES)
    ]
    made = []
    epoch = Training.epoch
    monkeypatch.setattr(Training, "epoch", lambda t, s: made.append(t.members) or epoch(t, s))
    told = []
    DecayRun.execute_all(several, told.append, bool)
    assert made == [3, 3]
    last = [news.row for news in told if news.phase == "done"]
    assert [row["penalty"] for row in last] == list(PENALTIES)


def test_runs_on_a_gpu_share_a_process():
    def shared(device):
        return DecayRun(0, 0, None, decay_settings(IRIS, device=device)).shared

    assert [shared(device) for device in ("cpu", "cuda", "cuda:1")] == [None, "cuda", "cuda:1"]


@pytest.mark.slow
def test_the_command_has_one_process_for_all(joint, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "shared", property(lambda _: "a device"))
    started = []
    worker = pool._Worker
    monkeypatch.setattr(pool, "_Worker", lambda runs: started.append(len(runs)) or worker(runs))
    line = f"decay IRIS_FF --runs 3 --seed 3 --penalties 0,1e-3,1 --epochs 5 --out {tmp_path}"
    done = CliRunner().invoke(app, [*line.split(), "--set", "record_every=2", "--device", "cpu"])
    assert done.exit_code == 0
    assert started == [3]
    same(joint, open_results(tmp_path))
