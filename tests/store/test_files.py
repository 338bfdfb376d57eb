"""Files that are whole or not at all, and are believed only where they are."""

from __future__ import annotations

import ast
import json
import re
import resource
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from isoloss import files
from isoloss.disk import DamagedError, ResultsError, StorageError
from isoloss.files import (
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)

SOURCE = Path(__file__).parents[2] / "src"


def flipped(content: bytes, k: int, bit: int) -> bytes:
    return content[:k] + bytes([content[k] ^ bit]) + content[k + 1 :]


def test_every_flipped_byte_and_every_cut_of_a_json_file_is_damage(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"x": [1, None, 0.1, "ü"], "y": {"z": True}})
    assert read_json(file) == {"x": [1, None, 0.1, "ü"], "y": {"z": True}}
    content = file.read_bytes()
    for k in range(len(content)):
        for changed in (content[:k], *(flipped(content, k, bit) for bit in (1, 16, 128))):
            file.write_bytes(changed)
            with pytest.raises(DamagedError, match=r"a\.json"):
                read_json(file)


@pytest.mark.parametrize("kind", ["table", "tensors"])
def test_tables_and_tensors_are_checked_against_their_stamp(tmp_path, kind):
    write, read, value = {
        "table": (write_table, read_table, pd.DataFrame({"a": [1.5, None], "b": ["x", ""]})),
        "tensors": (write_tensors, read_tensors, {"t": torch.arange(5.0), "n": torch.tensor(3)}),
    }[kind]
    file = tmp_path / "a.file"
    stamp = write(file, value)
    found = read(file, stamp)
    if kind == "table":
        pd.testing.assert_frame_equal(found, value)
    else:
        assert all(torch.equal(found[name], value[name]) for name in value)
    content = file.read_bytes()
    for k in range(0, len(content), 7):
        for changed in (content[:k], flipped(content, k, 4), content + content[:k] + b"x"):
            file.write_bytes(changed)
            with pytest.raises(DamagedError, match=r"a\.file"):
                read(file, stamp)
    file.unlink()
    with pytest.raises(DamagedError, match="missing"):
        read(file, stamp)


def test_files_have_the_mode_that_any_program_gives_them(tmp_path):
    (tmp_path / "usual").touch()
    write_json(tmp_path / "a.json", {})
    write_table(tmp_path / "a.parquet", pd.DataFrame({"a": [1]}))
    usual = (tmp_path / "usual").stat().st_mode
    assert {file.stat().st_mode for file in tmp_path.iterdir()} == {usual}


def test_a_file_is_read_once_and_what_was_hashed_is_parsed(tmp_path, monkeypatch):
    table = write_table(tmp_path / "t", pd.DataFrame({"a": [1]}))
    tensors = write_tensors(tmp_path / "s", {"t": torch.zeros(1)})
    read, real = [], files.read_bytes

    def then_change(file):
        """Nothing that comes to the file after it was read is believed."""
        content = real(file)
        read.append(file.name)
        file.write_bytes(b"changed")
        return content

    monkeypatch.setattr(files, "read_bytes", then_change)
    assert read_table(tmp_path / "t", table)["a"].tolist() == [1]
    assert read_tensors(tmp_path / "s", tensors)["t"].tolist() == [0.0]
    assert read == ["t", "s"]


def test_every_file_names_its_format(tmp_path):
    write_json(tmp_path / "a.json", {})
    write_table(tmp_path / "a.parquet", pd.DataFrame({"a": [1]}))
    write_tensors(tmp_path / "a.safetensors", {"t": torch.zeros(1)})
    assert json.loads((tmp_path / "a.json").read_text())["format_version"] == 3
    assert pq.read_schema(tmp_path / "a.parquet").metadata[b"isoloss_format_version"] == b"3"
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format_version": "3"}


@pytest.mark.parametrize(
    ("version", "writer", "words"),
    [
        (99, "7.5", ["format 99", "isoloss 7.5", "reads format 3", "upgrade isoloss"]),
        (2, "0.0.9", ["format 2", "isoloss 0.0.9", "read it with that version"]),
        (1, None, ["format 1", "an earlier isoloss", "make the results again"]),
    ],
)
def test_another_format_is_refused_with_who_wrote_it(tmp_path, monkeypatch, version, writer, words):
    file = tmp_path / "a.json"
    with monkeypatch.context() as patched:
        patched.setattr(files, "FORMAT_VERSION", version)
        patched.setattr(files, "__version__", writer)
        write_json(file, {"a": 1})
    if version == 1:  # these had no checksum
        file.write_text('{"format_version": 1, "a": 1}')
    with pytest.raises(ResultsError) as refusal:
        read_json(file)
    assert not isinstance(refusal.value, DamagedError)
    assert all(word in str(refusal.value) for word in words), refusal.value


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


BETWEEN_PROCESSES = {
    "cores.py": {'cloudpickle.loads(Path(folder, "work")'},
    "pool.py": {"pickle.loads(content)"},
    "cluster.py": {"pickle.loads(content)"},
}
"""What processes of one command send one another, which no file of results holds."""


def test_no_source_reads_anything_that_can_run_code():
    calls = 0
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if file.name == "readers.py" and ast.unparse(node) == "import pickle":
                # for pickles whose SHA-256 is pinned, by an unpickler that makes arrays alone
                used = set(re.findall(r"pickle\.\w+", file.read_text(encoding="utf-8")))
                assert used <= {"pickle.Unpickler", "pickle.UnpicklingError"}
            elif file.name in BETWEEN_PROCESSES and ast.unparse(node) in {
                "import joblib",
                "import cloudpickle",
                "import pickle",
            }:
                read = re.findall(r"\w+\.loads?\([^)]*\)", file.read_text(encoding="utf-8"))
                assert set(read) <= BETWEEN_PROCESSES[file.name], file
            elif isinstance(node, ast.Import | ast.ImportFrom):
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
