"""Files that are whole or not at all, and are believed only where they are."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import resource
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from isoloss import InputError, IsolossError
from isoloss.files import (
    DamagedError,
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from isoloss.storage import StorageError
from isoloss.store import ResultsError, run
from isoloss.store import folder as folder_module
from isoloss.store.folder import (
    begin,
    check,
    load_config,
    load_start,
    problem,
    save_failure,
    save_start,
)
from isoloss.store.pack import pack, unpack

SOURCE = Path(__file__).parents[2] / "src"


def test_every_flipped_byte_and_every_cut_of_a_json_file_is_noticed(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"x": [1, None, 0.1, "ü"], "y": {"z": True}})
    assert read_json(file)["x"] == [1, None, 0.1, "ü"]
    content = file.read_bytes()
    for k in range(len(content)):
        for changed in (content[:k], *(_flipped(content, k, bit) for bit in (1, 16, 128))):
            file.write_bytes(changed)
            with pytest.raises(ResultsError, match=r"a\.json"):
                read_json(file)


def _flipped(content: bytes, k: int, bit: int) -> bytes:
    return content[:k] + bytes([content[k] ^ bit]) + content[k + 1 :]


def test_tables_and_tensors_are_checked_against_their_stamp(tmp_path):
    table, tensors = pd.DataFrame({"a": [1.5, float("nan")]}), {"t": torch.arange(5.0)}
    for name, write, read, value in (
        ("a.parquet", write_table, read_table, table),
        ("a.safetensors", write_tensors, read_tensors, tensors),
    ):
        file = tmp_path / name
        stamp = write(file, value)
        read(file, stamp)
        content = file.read_bytes()
        for k in range(0, len(content), 7):
            for changed in (content[:k], _flipped(content, k, 4)):
                file.write_bytes(changed)
                with pytest.raises(DamagedError, match=name):
                    read(file, stamp)
                with contextlib.suppress(IsolossError):  # of format 1: a sentence at worst
                    read(file, None)


def test_every_file_names_its_format(tmp_path):
    write_json(tmp_path / "a.json", {})
    write_table(tmp_path / "a.parquet", pd.DataFrame({"a": [1]}))
    write_tensors(tmp_path / "a.safetensors", {"t": torch.zeros(1)})
    assert json.loads((tmp_path / "a.json").read_text())["format_version"] == 2
    assert pq.read_schema(tmp_path / "a.parquet").metadata[b"isoloss_format_version"] == b"2"
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format_version": "2"}


def test_runs_of_format_1_are_read():
    folder = Path(__file__).parent / "formats" / "version-1"
    assert problem(folder) is None
    path = run.load(folder)
    assert path.point_steps == [0, 2]
    assert path.points.shape == (2, 31_103)
    assert path.steps["kind"].tolist() == ["start", "predict", "predict"]
    assert path.points.square().sum(1).tolist() == pytest.approx(
        path.steps["regularizer"].iloc[[0, 2]].tolist()
    )


def test_runs_of_format_1_count_as_finished_though_they_name_no_regularizer():
    folder = Path(__file__).parent / "formats" / "version-1"
    config = {**read_json(folder / "config.json")["config"], "regularizer": "squared_norm"}
    assert check(folder, config)
    with pytest.raises(InputError, match="regularizer was 'squared_norm', now 'l1'"):
        check(folder, {**config, "regularizer": "l1"})


def test_runs_of_format_2_are_read_and_their_files_checked(tmp_path):
    folder = tmp_path / "run-000"
    shutil.copytree(Path(__file__).parent / "formats" / "version-2" / "run-000", folder)
    assert problem(folder) is None
    assert check(folder, read_json(folder / "config.json")["config"])
    path = run.load(folder)
    assert path.steps["kind"].tolist() == ["start", "predict", "predict", "predict"]
    assert path.points.square().sum(1).tolist() == pytest.approx(
        path.steps["regularizer"].iloc[path.point_steps].tolist()
    )
    (folder / "steps.parquet").write_bytes(b"torn")
    assert "steps.parquet" in (problem(folder) or "")


@pytest.mark.parametrize("version", [3, 99])
def test_a_newer_format_is_refused_kindly(tmp_path, version):
    (tmp_path / "a.json").write_text(json.dumps({"format_version": version, "other": []}))
    with pytest.raises(ResultsError, match=f"format {version}.*upgrade isoloss"):
        read_json(tmp_path / "a.json")


def test_a_file_too_large_is_a_sentence_and_what_was_there_stays(tmp_path):
    file = tmp_path / "a.safetensors"
    stamp = write_tensors(file, {"t": torch.zeros(10)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for name, write, value in (
            ("a.safetensors", write_tensors, {"t": torch.zeros(10_000)}),
            ("a.parquet", write_table, pd.DataFrame({"a": torch.rand(10_000).numpy()})),
            ("a.json", write_json, {"a": "x" * 10_000}),
        ):
            with pytest.raises(StorageError, match=r"File too large; raise the limit.*valid"):
                write(tmp_path / name, value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(read_tensors(file, stamp)["t"], torch.zeros(10))
    assert [left.name for left in tmp_path.iterdir()] == ["a.safetensors"]


def test_too_many_open_files_is_a_sentence_and_damages_nothing(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(StorageError, match="Too many open files; raise the limit"):
            write_json(tmp_path / "b.json", {"a": 1})
        with pytest.raises(StorageError, match="Too many open files"):  # not damaged: unreadable
            read_json(tmp_path / "a.json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read_json(tmp_path / "a.json")["a"] == 1


@pytest.mark.parametrize("number", [28, 30, 13, 122, 5])
def test_what_the_disk_refuses_is_a_sentence(tmp_path, monkeypatch, number):
    write_json(tmp_path / "a.json", {"a": 1})

    def refuse(descriptor):
        raise OSError(number, "refused")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*a\.json: .*; .* same command again"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json")["a"] == 1


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "name", ["config.json", "outcome.json", "steps.parquet", "points.safetensors"]
)
def test_a_malicious_file_is_a_sentence_and_nothing_is_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).parent / "formats" / "version-1"
    folder = tmp_path / "run-000"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for content in (pickle.dumps(Evil()), b"__import__('os').abort()", b"!!python/object:os.abort"):
        (folder / name).write_bytes(content)
        with pytest.raises(ResultsError):
            run.load(folder)
    assert not (tmp_path / "executed").exists()


def test_checkpoints_name_no_file_outside_their_folder(tmp_path):
    from isoloss.store.slots import Content, Slots

    slots = Slots(tmp_path / "kept", tmp_path)
    slots.save(Content({}, {}))
    manifest = tmp_path / "kept" / "a" / "manifest.json"
    content = read_json(manifest)
    (name,) = content["files"]
    content["files"]["../../secret"] = content["files"][name]
    write_json(manifest, content)
    again = Slots(tmp_path / "kept", tmp_path)
    assert again.load() is None
    assert "secret" in again.damage[0]


def test_no_source_reads_anything_that_can_run_code():
    calls = 0
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", "") or ""
                names = {module.split(".")[0], *(alias.name for alias in node.names)}
                assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal",
                                    "shelve", "yaml"}, file  # fmt: skip
            if isinstance(node, ast.Call):
                calls += 1
                called = ast.unparse(node.func)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert called not in {"eval", "exec", "__import__", "os.system"}, (file, called)
                if called == "torch.load":
                    assert options.get("weights_only") == "True", file
                assert options.get("allow_pickle", "False") == "False", file
    assert calls > 1000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
def test_values_are_packed_and_unpacked_as_they_were(value):
    tree, storages = pack(value)
    again = unpack(json.loads(json.dumps(tree, allow_nan=False)), storages, ())
    assert repr(again) == repr(value)


def test_tensors_keep_strides_and_what_they_share():
    base = torch.arange(12.0).reshape(3, 4)
    value = [base, base.t(), base[1, 1:3], torch.zeros(0), base.clone()]
    tree, storages = pack(value)
    again = unpack(tree, {k: v.clone() for k, v in storages.items()}, ())
    for one, other in zip(value, again, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    again[0][1, 1] = -1
    assert again[1][1, 1] == again[2][0] == -1
    assert again[4][1, 1] == 5


def test_unpacking_makes_no_class_that_is_not_named():
    place = {"storage": "a", "device": "cpu", "shape": [1], "stride": [1]}
    for tree in (
        {"class": "Path", "fields": {}},
        {"enum": "Outcome", "value": "converged"},
        {"class": "os.system", "fields": {}},
        {"tensor": {**place, "dtype": "load", "offset": 0}},
        {"tensor": {**place, "dtype": "float32", "offset": 9}},
        {"other": 1},
    ):
        with pytest.raises(ValueError, match="not a packed state"):
            unpack(tree, {"a": torch.zeros(4, dtype=torch.uint8)}, ())


def test_a_function_cannot_be_packed():
    with pytest.raises(TypeError, match="checkpoint"):
        pack({"f": len})


def test_a_start_half_kept_is_no_damage_and_one_half_lost_is(tmp_path, monkeypatch):
    config, tensors, said = {"seed": 0}, {"weights": torch.ones(3)}, []
    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_json", lambda *_: 1 / 0)  # killed in between
        with contextlib.suppress(ZeroDivisionError):
            save_start(tmp_path, config, tensors)
    assert load_start(tmp_path, said.append) is None
    assert said == []
    save_start(tmp_path, config, tensors)
    kept = load_start(tmp_path, said.append)
    assert kept is not None
    assert torch.equal(kept["weights"], tensors["weights"])
    (tmp_path / "checkpoint" / "start.json").unlink()
    assert load_start(tmp_path, said.append) is None
    assert "start.json is missing" in said[0]
    assert [file.name[:17] for file in (tmp_path / "quarantine").iterdir()] == ["start.safetensors"]


def test_a_run_that_failed_before_it_had_begun_is_no_damage(tmp_path):
    said: list[str] = []
    save_failure(tmp_path, "its process was killed")
    assert begin(tmp_path, {"seed": 0}, {}, said.append)
    assert said == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "outcome.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "steps.parquet").touch()  # but this was there, so that it has been lost
    assert begin(tmp_path, {"seed": 0}, {}, said.append)
    assert "config.json is missing" in said[0]
    assert [file.name[:13] for file in (tmp_path / "quarantine").iterdir()] == ["steps.parquet"]


def test_a_damaged_file_of_a_finished_run_goes_into_quarantine_and_the_run_is_done_again(tmp_path):
    source = Path(__file__).parent / "formats" / "version-1"
    folder = tmp_path / "run-000"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = load_config(folder)
    assert not begin(folder, config, {})
    (folder / "outcome.json").write_bytes(b"{")
    said: list[str] = []
    assert begin(folder, config, {}, said.append)
    assert "outcome.json is damaged" in said[0]
    kept = sorted(file.name.split("-2")[0] for file in (folder / "quarantine").iterdir())
    assert kept == ["outcome.json", "points.safetensors", "steps.parquet"]
