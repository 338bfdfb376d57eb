"""What trackers log of a walk, read back from local files, by their own packages where they can."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.test_trackers import go, run

from isoloss import Checkpoint, Path, open_results
from isoloss.path import Row
from isoloss.trackers import MLflow, TensorBoard, WandB

FIGURES = ["loss", "regularizer", "evaluations", "kkt_residual", "test_loss"]


def expected(path: Path, name: str) -> dict[int, float]:
    """The measured values of a column by their steps."""
    columns = zip(path.steps["step"], path.steps[name], strict=True)
    return {step: value for step, value in columns if not math.isnan(value)}


def events(folder: FilePath) -> Any:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(found: Any, name: str) -> dict[int, float]:
    kept = [(one.step, one.value) for one in found.Scalars(name)]
    assert len(dict(kept)) == len(kept)
    return dict(kept)


def text(found: Any, name: str) -> str:
    (tensor,) = found.Tensors(f"{name}/text_summary")[-1:]
    return tensor.tensor_proto.string_val[0].decode()


def test_tensorboard_shows_every_row_the_settings_and_the_end(tmp_path: FilePath) -> None:
    pytest.importorskip("tensorboard")
    path = go(TensorBoard(tmp_path, config={"seed": 5, "of": {"lr": 0.1}}))
    found = events(tmp_path)
    for name in FIGURES:  # which are kept in float32
        assert scalars(found, name) == pytest.approx(expected(path, name), rel=1e-6)
    assert "test_loss" in path.steps
    settings = text(found, "settings")
    for line in ("| seed | 5 |", "| of.lr | 0.1 |", "| rtol | 0.001 |", "| method.name | sqp |"):
        assert line in settings
    assert f"| outcome | {path.outcome.value} |" in text(found, "outcome")
    hparams = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"method.name" in hparams
    assert "_hparams_/session_end_info" in found.summary_metadata


def test_curves_of_tensorboard_go_on_after_a_kill(tmp_path: FilePath) -> None:
    pytest.importorskip("tensorboard")
    folder, place = tmp_path / "kept", tmp_path / "board"
    known = {"checkpoint": Checkpoint(folder, every=0)}
    go(TensorBoard(place), steps=3, **known)
    stale = TensorBoard(place)  # logs steps that no checkpoint knows of
    stale.begin({})
    for step in (4, 5, 6):
        stale({"step": step, "loss": 99.0})
    stale.end(None)
    path = go(TensorBoard(place), steps=7, **known)
    assert scalars(events(place), "loss") == pytest.approx(expected(path, "loss"), rel=1e-6)


def test_mlflow_keeps_every_row_the_settings_and_the_end(tmp_path: FilePath) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    known = {"tracking_uri": uri, "config": {"seed": 5, "note": "x" * 700}}
    path = go(MLflow("walks", run_name="first", **known))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("walks").experiment_id
    (run,) = client.search_runs([experiment])
    for name in FIGURES:
        history = client.get_metric_history(run.info.run_id, name)
        assert {one.step: one.value for one in history} == expected(path, name)
        assert len(history) == len(expected(path, name))
    assert run.data.params["rtol"] == "0.001"
    assert run.data.params["method.name"] == "sqp"
    assert run.data.params["seed"] == "5"
    assert run.data.tags["outcome"] == path.outcome.value
    assert run.data.tags["message"] == path.message
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")

    def broken(row: Row) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        go([MLflow("walks", **known), broken])
    (run,) = client.search_runs([experiment], "status = 'FAILED'")
    assert run.data.tags["outcome"] == "failed"
    mine = client.create_run(experiment).info.run_id  # the user's own, which stays open
    go(MLflow(run_id=mine, **known))
    run = client.get_run(mine)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["loss"] == path.steps["loss"].iloc[-1]


def test_many_rows_of_mlflow_go_in_few_calls(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    calls, log = list[int](), mlflow.MlflowClient.log_batch

    def counted(self: Any, run: str, metrics: Any = (), **others: Any) -> None:
        calls.append(len(metrics))
        log(self, run, metrics, **others)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    tracker = MLflow(tracking_uri=uri)
    tracker.begin({f"setting {k}": k for k in range(250)})
    for step in range(500):
        tracker({"step": step, "kind": "step", "loss": 1.0 / (step + 1), "angle": 2.0, "R": 3.0})
    tracker.end(None)
    assert max(calls) <= 1000
    assert sum(calls) == 1500
    assert sum(one > 0 for one in calls) < 20
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("isoloss").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 500
    assert len(run.data.params) == 250


def records(file: bytes) -> Iterator[bytes]:
    """The records of a W&B file, which is a log of LevelDB's after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(file):
        length, part = struct.unpack_from("<HB", file, at + 4)
        if at + 7 + length > len(file):  # being written
            return
        record += file[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or its last part
            yield record
            record = b""
        left = -at % 32768
        at += left if left < 7 else 0  # a block's end that holds no header


def test_wandb_offline_holds_every_row_the_settings_and_the_end(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb.sdk")  # a folder `wandb` may be one that it left behind
    from wandb.proto.wandb_internal_pb2 import Record as Said

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)  # it keeps to the first folder that it sees
    # which it may have read before, for another test
    quiet = {"mode": "offline", "settings": {"silent": True}, "dir": str(tmp_path)}
    path = go(WandB("walks", name="first", config={"seed": 5}, **quiet))
    (file,) = tmp_path.rglob("*.wandb")
    rows, config, summary = dict[int, dict[str, Any]](), {}, {}
    for _ in range(100):  # another process writes it, perhaps after `finish` has returned
        all_said = [Said.FromString(data) for data in records(file.read_bytes())]
        if all_said and all_said[-1].HasField("exit"):
            break
        time.sleep(0.1)
    for said in all_said:
        pairs = {
            one.key or ".".join(one.nested_key): json.loads(one.value_json)
            for one in said.history.item
        }
        if pairs:
            rows[int(pairs["_step"])] = pairs
        config |= {one.key: json.loads(one.value_json) for one in said.run.config.update}
        for one in said.summary.update:
            summary[one.key or ".".join(one.nested_key)] = json.loads(one.value_json)
    for name in FIGURES:
        assert {k: row[name] for k, row in rows.items() if name in row} == expected(path, name)
    assert (config["rtol"], config["seed"], config["method.name"]) == (0.001, 5, "sqp")
    assert summary["outcome"] == path.outcome.value
    assert summary["message"] == path.message


def test_what_has_the_calls_of_wandb_serves_as_well(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    path = go(WandB("walks", module=trackio, name="first", embed=False))
    rows = SQLiteStorage.get_logs("walks", "first")
    for name in FIGURES:
        found = {row["step"]: row[name] for row in rows if name in row}
        assert found == pytest.approx(expected(path, name), rel=1e-12)
    assert rows[-1]["outcome"] == path.outcome.value


def test_a_tracked_run_is_logged_beside_its_folder_and_keeps_the_same(tmp_path: FilePath) -> None:
    pytest.importorskip("tensorboard")
    plain, (news, path) = run(tmp_path / "plain")[1], run(tmp_path / "out", "tensorboard")
    assert news.notes == ()
    found = events(tmp_path / "out/IRIS_FF/tensorboard/sqp/run-000")
    assert scalars(found, "test_loss") == pytest.approx(expected(path, "test_loss"), rel=1e-6)
    assert "| seed | 3 |" in text(found, "settings")
    assert "| experiment | IRIS_FF |" in text(found, "settings")
    assert torch.equal(path.points, plain.points)
    assert path.metadata["config"] == plain.metadata["config"]
    folders = [FilePath(one.metadata["folder"]) for one in (plain, path)]
    assert len({tuple(sorted(file.name for file in one.iterdir())) for one in folders}) == 1
    results = open_results(tmp_path / "out")
    assert (results.experiments(), results.methods("IRIS_FF")) == (["IRIS_FF"], ["sqp"])
