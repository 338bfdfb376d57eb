"""Logs of the reference's code: read without running them, and written so that it could."""

from __future__ import annotations

import io
import pathlib
import re
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from tests.methods.test_golden import GOLDEN, keras_to_torch

from isoloss import Problem, Record, Stop, experiments, open_results, traverse
from isoloss.experiments.catalog import convolutional
from isoloss.reference import export_reference, from_keras, import_reference, to_keras
from isoloss.report import walk_table
from isoloss.report.walks import band
from isoloss.store import run_folder
from isoloss.store.folder import Stack, begin, save_decay, save_walk


def iris(dtype=torch.float32):
    experiment = experiments.get("IRIS_FF")
    data = experiment.data(0)
    return Problem(experiment.network(0), "cross_entropy", (data.inputs, data.targets), dtype=dtype)


# ---------------------------------------------------------------- Keras' order


def test_dense_weights_are_in_keras_order():
    network = experiments.get("IRIS_FF").network(3)
    theta = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    flat = to_keras(theta, network)
    first = flat[:400].view(4, 100)  # kernel of the first layer: inputs x outputs
    torch.testing.assert_close(first, network[0].weight.detach().T)
    assert torch.equal(keras_to_torch(flat.numpy(), network), theta)
    assert torch.equal(from_keras(flat, network), theta)


def keras_forward(flat, images, channels, filters, hidden):
    """The convolutional network on channels-last images, in NumPy, from Keras' weights."""
    start = 0

    def take(*shape):
        nonlocal start
        piece = flat[start : start + int(np.prod(shape))].reshape(shape)
        start += piece.size
        return piece

    x = images
    for inputs in (channels, filters):
        kernel, bias = take(3, 3, inputs, filters), take(filters)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.tanh(np.einsum("bijcrs,rsco->bijo", windows, kernel) + bias)
        b, h, w, c = x.shape
        x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    x = x.reshape(len(x), -1)
    x = np.tanh(x @ take(x.shape[1], hidden) + take(hidden))
    x = x @ take(hidden, 10) + take(10)
    assert start == len(flat)
    return x


def test_convolutions_in_keras_order_compute_the_same_on_channels_last_images():
    network = convolutional(channels=2, size=15, filters=3, hidden=5).double()
    theta = torch.randn(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    torch.nn.utils.vector_to_parameters(theta, network.parameters())
    images = torch.rand(4, 2, 15, 15, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images).numpy()
    flat = to_keras(theta, network)
    ours = keras_forward(flat.numpy(), images.permute(0, 2, 3, 1).numpy(), 2, 3, 5)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    assert torch.equal(from_keras(flat, network), theta)
    several = torch.stack([theta, 2 * theta])
    assert torch.equal(from_keras(to_keras(several, network), network), several)


def test_points_or_layers_of_another_network_are_refused(refuses):
    with refuses("31103"):
        to_keras(torch.zeros(3), experiments.get("IRIS_FF").network(0))
    with refuses("BatchNorm1d"):
        to_keras(torch.zeros(4), torch.nn.Sequential(torch.nn.BatchNorm1d(2)))


# ---------------------------------------------------------------- import


def logged(others=False) -> dict:
    """What the reference's code would have logged of the recorded trace, with its own oddities."""
    with np.load(GOLDEN / "IRIS_FF.npz") as file:
        golden = {name: file[name] for name in file.files}
    steps = len(golden["predictor_index"])
    kept = np.arange(1, steps + 1)
    kept = kept[kept % 50 != 0] if others else kept[(kept == 1) | (kept % 50 == 0)]
    rows = golden["theta_keras"] * (1 - kept[:, None] / 1e4).astype(np.float32)
    losses = np.stack([golden["train_loss"], golden["train_loss_evaluated"]], axis=1)
    return {
        "SEED": None,  # as there: an array of objects
        "index_epoch": np.arange(1, 401),
        "index_epoch_pred": golden["predictor_index"],
        "index_epoch_corr": golden["corrector_index"],
        "angle_bw_gradients": golden["angle_degrees"],
        "param_norms": golden["squared_norm"],
        "train_loss": losses.ravel(),
        "train_accuracy": golden["train_metric"],
        "test_loss": golden["test_loss"],
        "test_accuracy": golden["test_metric"],
        "loss_change": golden["squared_level_error"],
        "lr_pred": golden["predictor_step_length"],
        "lr_corr": golden["corrector_step_length"],
        "weights_phase1": golden["theta_keras"],
        "weights_phase2": rows,
    }


def write_log(folder, name="logs_IRIS_FF_exp_1.npz", **changes):
    (folder / "IRIS_FF").mkdir(exist_ok=True)
    np.savez(folder / "IRIS_FF" / name, **{**logged(), **changes})


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_log(folder)
    rows = logged()["weights_phase2"]
    # copies would not be taken for other runs
    write_log(folder, "logs_IRIS_FF_exp_10.npz", weights_phase2=rows * np.float32(1 - 1e-6))
    write_log(
        folder,
        "logs_IRIS_FF_exp_2.npz",
        SEED=np.array([41]),
        test_loss=logged()["test_loss"] + 1,
        weights_phase2=rows * np.float32(1 - 2e-6),
    )
    return import_reference(folder, folder / "out"), folder / "out"


def test_the_start_has_the_loss_and_norm_that_were_recorded(imported):
    path = imported[0].paths["IRIS_FF"][0]
    theta = path.points[0].double()
    assert iris(torch.float64).loss(theta).item() == pytest.approx(path.level, rel=1e-6)
    assert theta.square().sum().item() == pytest.approx(path.steps["regularizer"][0], rel=1e-6)


def test_rows_are_those_of_our_own_walk_from_there(imported):
    theirs = imported[0].paths["IRIS_FF"][0]
    ours = traverse(
        iris(),
        start=theirs.points[0],
        level=theirs.level,
        method=experiments.get("IRIS_FF").paper,
        stop=Stop(steps=80),
        progress=False,
    ).steps
    for column in ("loss", "regularizer", "step_length", "arc_length", "angle_degrees"):
        np.testing.assert_allclose(theirs.steps[column][:80], ours[column][:80], rtol=1e-5)
    assert theirs.steps["kind"][:84].tolist() == ["start"] + ["predict"] * 83
    assert theirs.steps["kind"][84] == "correct"
    assert theirs.steps["evaluations"].tolist() == list(range(1, 402))
    assert np.isnan(theirs.steps["loss"][84])  # was not recorded


def test_points_are_where_the_reference_kept_them(imported):
    path = imported[0].paths["IRIS_FF"][0]
    predicted = logged()["index_epoch_pred"]
    assert path.point_steps == [0, *predicted[[0, 49, 99, 149, 199, 249, 299, 349]].tolist()]
    network = experiments.get("IRIS_FF").network(0)
    expected = keras_to_torch(logged()["weights_phase2"][2], network)
    assert torch.equal(path.points[3], expected)


def test_the_script_that_keeps_all_other_points_is_understood(tmp_path):
    write_log(tmp_path, weights_phase2=logged(others=True)["weights_phase2"])
    (path,) = import_reference(tmp_path).paths["IRIS_FF"]
    predicted = logged()["index_epoch_pred"].astype(int)
    others = [number for number in range(1, 384) if number % 50][::50]
    assert path.point_steps == [0, *(int(predicted[number - 1]) for number in others)]
    scale = 1 - others[-1] / 1e4
    torch.testing.assert_close(path.points[-1], path.points[0] * scale, rtol=1e-5, atol=1e-7)


def test_files_are_in_the_order_of_their_numbers_with_seeds_where_there_are(imported):
    paths = imported[0].paths["IRIS_FF"]
    assert [path.metadata["config"]["seed"] for path in paths] == [None, 41, None]
    assert paths[1].steps["test_loss"][0] == pytest.approx(paths[0].steps["test_loss"][0] + 1)
    assert imported[0].skipped == []


def test_imported_walks_are_results_like_any(imported):
    paths = open_results(imported[1]).paths("IRIS_FF", "paper")
    assert [path.metadata["folder"][-7:] for path in paths] == ["run-000", "run-001", "run-009"]
    pd.testing.assert_frame_equal(paths[0].steps, imported[0].paths["IRIS_FF"][0].steps)
    table = walk_table({"paper": paths})
    assert table["mean"].notna().all()
    assert len(band(paths, "test_loss").x) > 300


class Payload:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("was-run"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path, SEED=np.array([Payload()], dtype=object))
    write_log(tmp_path, "logs_IRIS_FF_exp_2.npz", lr_pred=np.array([Payload()], dtype=object))
    found = import_reference(tmp_path)
    assert len(found.paths["IRIS_FF"]) == 1
    assert "lr_pred" in found.skipped[0]
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_loss": np.zeros(3)}, ["test_loss", "383 predictor steps"]),
        ({"index_epoch": np.arange(7)}, ["index_epoch"]),
        ({"index_epoch_pred": np.zeros(0, int)}, ["0 predictor steps"]),
        ({"weights_phase2": np.zeros((5, 31103), np.float32)}, ["5 points", "every 50th"]),
        ({"weights_phase1": np.zeros(9, np.float32)}, ["exp_1.npz"]),
        ({"index_epoch_pred": np.full(383, 10**6)}, ["exp_1.npz"]),
        ({"test_loss": np.array(["x"] * 383)}, ["exp_1.npz"]),
        ({"train_loss": np.float64(3)}, ["exp_1.npz"]),
    ],
)
def test_logs_that_do_not_fit_together_are_skipped_with_a_sentence(tmp_path, changes, words):
    write_log(tmp_path, **changes)
    found = import_reference(tmp_path)
    assert found.paths == {}
    (sentence,) = found.skipped
    assert all(word in sentence for word in words), sentence


def declared(shape: tuple[int, ...]) -> bytes:
    """An array that says it has a shape, and has nothing of it."""
    opened = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, header)
    return opened.getvalue()


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    opened = io.BytesIO()
    with zipfile.ZipFile(opened, "w", compression) as file:
        file.writestr("SEED.npy", content)
    return opened.getvalue()


deflated = zipped(declared((3,)) + bytes(24), zipfile.ZIP_DEFLATED)
BAD = {
    "empty": b"",
    "no zip": b"PK\x03\x04 no zip",
    "no array": b"\x93NUMPY",
    "cut": zipped(declared((3,)) + bytes(24))[:-30],
    "72 TiB": zipped(declared((9 * 2**40,))),
    "too many": zipped(declared((2**62, 2**62))),
    "header": zipped(b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[  "),
    "deflate": deflated.replace(deflated[40:50], b"\xff" * 10, 1),
    "method": deflated.replace(b"\x08\x00", b"\x63\x00"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_file_is_skipped_with_a_sentence_and_the_others_are_read(tmp_path, name):
    write_log(tmp_path)
    for file in ("logs_IRIS_FF_exp_2.npz", "logs_regpenidx_1_expidx_1.npz"):
        folder = tmp_path / ("IRIS_FF" if "FF" in file else "L2_IRIS_FF")
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(BAD[name])
    found = import_reference(tmp_path)
    assert len(found.paths["IRIS_FF"]) == 1
    walk, decay = found.skipped
    for file, sentence in (("exp_2", walk), ("expidx_1", decay)):
        assert re.fullmatch(rf"\S*{file}\.npz cannot be read: [^\n]+; leave it out, .*", sentence)
    if name == "72 TiB":
        assert "SEED.npy declares 79,164,837,199,872 bytes and has 0" in walk


def test_an_array_far_larger_than_its_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("isoloss.reference.logs.LEAST_BOUND", 2**20)
    many = {**logged(), "SEED": np.zeros(2**22)}
    (tmp_path / "IRIS_FF").mkdir()
    np.savez_compressed(tmp_path / "IRIS_FF" / "logs_IRIS_FF_exp_1.npz", **many)
    (tmp_path / "IRIS_FF" / "logs_IRIS_FF_exp_2.npz").write_bytes(
        zipped(declared((2**22,)) + bytes(2**25), zipfile.ZIP_DEFLATED)
    )
    found = import_reference(tmp_path)  # of the first, SEED is within a hundred times the file
    assert len(found.paths["IRIS_FF"]) == 1
    (sentence,) = found.skipped
    assert "SEED.npy declares 33,554,432 bytes, more than is read: 3," in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_loss": np.full(766, np.nan)}, "its loss at the first step is nan"),
        ({"index_epoch_pred": -logged()["index_epoch_pred"]}, "index_epoch"),
        ({"index_epoch_pred": logged()["index_epoch_pred"] + 0.5}, "index_epoch"),
        ({"weights_phase1": np.zeros(31_103, int)}, "no floating numbers"),
        ({"index_weights_phase2": np.arange(8) - 3}, "index_weights_phase2"),
    ],
)
def test_numbers_that_no_walk_has_are_one_sentence_each(tmp_path, changes, words):
    write_log(tmp_path, **changes)
    found = import_reference(tmp_path, tmp_path / "out")
    (sentence,) = found.skipped
    assert words in sentence
    assert not (tmp_path / "out").exists()


def test_unknown_folders_and_experiments_are_refused(tmp_path, refuses):
    with refuses("nowhere"):
        import_reference(tmp_path / "nowhere")
    (tmp_path / "logs_IRIS_FFF_exp_1.npz").write_bytes(b"")
    with refuses("IRIS_FFF", "IRIS_FF"):
        import_reference(tmp_path)


# ---------------------------------------------------------------- there and back


def test_a_walk_goes_there_and_back(tmp_path):
    problem = iris()
    test = iris()
    path = traverse(
        problem,
        method=experiments.get("IRIS_FF").paper,
        stop=Stop(steps=40),
        record=Record(points_every=7, points_at_most=None),
        probes={"test": test},
        progress=False,
    )
    begin(run_folder(tmp_path, "IRIS_FF", "paper", 0), {"seed": 5}, {})
    save_walk(run_folder(tmp_path, "IRIS_FF", "paper", 0), path)
    written = export_reference(open_results(tmp_path), "IRIS_FF", tmp_path / "theirs")
    assert [file.name for file in written.files] == ["logs_IRIS_FF_exp_1.npz"]
    (back,) = import_reference(tmp_path / "theirs").paths["IRIS_FF"]
    assert torch.equal(back.points, path.points)
    assert back.point_steps == path.point_steps
    assert back.level == path.level
    columns = ["kind", "loss", "regularizer", "angle_degrees", "step_length", "test_loss"]
    recorded = back.steps["loss"].notna()
    assert recorded.sum() == 40
    pd.testing.assert_frame_equal(
        back.steps.loc[recorded, columns], path.steps.loc[recorded, columns], rtol=1e-12
    )
    assert back.metadata["config"]["seed"] == 5


def stack(n, seed):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(3, n, generator=generator) / 10
    weights = torch.cat(
        [
            torch.full((p.numel(),), p.ndim > 1)
            for p in experiments.get("IRIS_FF").network(0).parameters()
        ]
    )
    squares = (ends.double().square() * weights).sum(dim=1).numpy()
    rows = [
        {
            "epoch": epoch, "penalty": penalty, "train_loss": 0.1,
            "penalized_train_loss": 0.1 + penalty * squares[k] / epoch, "train_metric": 0.9,
            "test_loss": 0.2, "penalized_test_loss": 0.2 + penalty * squares[k] / (3 - epoch),
            "test_metric": 0.8, "squared_norm": 1.0, "squared_norm_weights": squares[k],
        }
        for epoch in (1, 2)
        for k, penalty in enumerate((0.0, 1e-3, 0.5))
    ]  # fmt: skip
    return Stack(pd.DataFrame(rows), ends, torch.tensor([-1, -1, -1])), squares


def test_weight_decay_goes_there_and_back_but_for_penalties_the_reference_has_not(tmp_path):
    for index in (0, 1):
        folder = run_folder(tmp_path, "IRIS_FF", None, index, "decay")
        begin(folder, {"seed": 30 + index}, {})
        whole, _ = stack(31_103, index)
        save_decay(folder, whole, None, start=whole.ends[0].clone(), indices=torch.arange(3))
    results = open_results(tmp_path)
    written = export_reference(results, "IRIS_FF", tmp_path / "theirs")
    assert {file.name for file in written.files} == {
        f"logs_regpenidx_{penalty}_expidx_{k}.npz" for penalty in (1, 5) for k in (1, 2)
    }
    assert [s for s in written.skipped if "penalty 0.5" in s] == written.skipped
    assert len(written.skipped) == 2
    back = import_reference(tmp_path / "theirs")
    table, ours = back.decay["IRIS_FF"], results.decay("IRIS_FF")
    kept = ours["penalty"] < 0.1
    assert table["penalty"].tolist() == [0.0, 1e-3, 0.0, 1e-3]
    assert table["seed"].tolist() == [30, 30, 31, 31]
    columns = ["run", "penalized_train_loss", "penalized_test_loss", "test_metric", "test_loss"]
    pd.testing.assert_frame_equal(
        table[columns], ours.loc[kept, columns].reset_index(drop=True), rtol=1e-9
    )
    np.testing.assert_allclose(table["squared_norm_weights"][1], stack(31_103, 0)[1][1])
    assert torch.equal(back.decay_points["IRIS_FF"], results.decay_points("IRIS_FF")[kept.tolist()])
    assert back.skipped == []


def test_nothing_to_export_says_what_to_run(tmp_path, refuses):
    (tmp_path / "IRIS_FF").mkdir()
    with refuses("isoloss traverse", "isoloss decay"):
        export_reference(open_results(tmp_path), "IRIS_FF", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
