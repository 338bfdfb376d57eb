"""Run folders: what is written is read back, and what is wrong is named."""

import json

import pandas as pd
import pytest
import torch

from isoloss import InputError, Outcome, Path, open_results
from isoloss.store import ResultsError, check_out_folder, run, run_folder
from isoloss.store.folder import begin, failure, save_failure


def small_path(outcome=Outcome.STEP_LIMIT):
    steps = pd.DataFrame({"step": [0, 1], "kind": ["start", "predict"], "loss": [0.5, 0.5]})
    return Path(
        steps=steps,
        points=torch.arange(6, dtype=torch.float32).reshape(2, 3),
        point_steps=[0, 1],
        level=0.5,
        outcome=outcome,
        message="Why (how much). What to do.",
        method="paper",
        regularizer="squared_norm",
        shapes={"weight": (1, 2), "bias": (1,)},
    )


def test_what_is_saved_is_read_back(tmp_path):
    assert begin(tmp_path / "r", {"seed": 3}, {"torch": "x"})
    run.save(tmp_path / "r", small_path(), {"indices": torch.tensor([4, 2])})
    path = run.load(tmp_path / "r")
    pd.testing.assert_frame_equal(path.steps, small_path().steps)
    assert torch.equal(path.points, small_path().points)
    for name in ("point_steps", "level", "outcome", "message", "method", "regularizer", "shapes"):
        assert getattr(path, name) == getattr(small_path(), name)
    assert path.metadata["config"] == {"seed": 3}
    assert path.metadata["tensors"]["indices"].tolist() == [4, 2]
    files = sorted(file.name for file in (tmp_path / "r").iterdir())
    assert files == ["config.json", "outcome.json", "points.safetensors", "steps.parquet"]


def test_a_finished_run_is_not_done_again_and_an_interrupted_one_is(tmp_path):
    begin(tmp_path, {"seed": 3}, {})
    run.save(tmp_path, small_path(Outcome.INTERRUPTED))
    assert begin(tmp_path, {"seed": 3}, {"torch": "other"})
    run.save(tmp_path, small_path(Outcome.CONVERGED))
    assert not begin(tmp_path, {"seed": 3}, {"torch": "other"})


def test_other_settings_are_refused_and_the_difference_shown(tmp_path):
    begin(tmp_path, {"seed": 3, "stop": {"steps": 5, "seconds": None}}, {})
    with pytest.raises(InputError, match=r"stop\.steps was 5, now 6") as refusal:
        begin(tmp_path, {"seed": 3, "stop": {"steps": 6, "seconds": None}}, {})
    assert "seconds" not in str(refusal.value)


def test_a_failure_is_kept_and_the_run_is_done_again(tmp_path):
    begin(tmp_path, {}, {})
    save_failure(tmp_path, "no memory")
    assert failure(tmp_path) == "no memory"
    assert begin(tmp_path, {}, {})
    with pytest.raises(ResultsError, match="no memory"):
        run.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "outcome.json", "steps.parquet", "points.safetensors"]
)
@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 50])
def test_damaged_files_are_named_not_crashed_on(tmp_path, name, damage):
    begin(tmp_path, {}, {})
    run.save(tmp_path, small_path())
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ResultsError, match=str(tmp_path)):
        run.load(tmp_path)


def test_a_newer_format_is_refused_kindly(tmp_path):
    begin(tmp_path, {}, {})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(ResultsError, match="upgrade isoloss"):
        begin(tmp_path, {}, {})


def test_results_list_what_is_there(tmp_path):
    for index, fate in enumerate(["done", "failed", "begun"]):
        folder = run_folder(tmp_path, "IRIS_FF", "paper", index)
        begin(folder, {"seed": index}, {})
        if fate == "done":
            run.save(folder, small_path())
        if fate == "failed":
            save_failure(folder, "no memory")
    results = open_results(tmp_path)
    assert results.experiments() == ["IRIS_FF"]
    assert results.methods("IRIS_FF") == ["paper"]
    assert len(results.paths("IRIS_FF", "paper")) == 1
    unfinished = {"run-001": "no memory", "run-002": "not finished"}
    assert results.unfinished("IRIS_FF", "paper") == unfinished


def test_missing_results_say_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match="isoloss reproduce"):
        open_results(tmp_path / "nothing")


def test_an_out_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file"):
            check_out_folder(folder)
    check_out_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="may not be written to"):
        check_out_folder(tmp_path / "new")
