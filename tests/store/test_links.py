"""No link is followed below the folder that a user names, which may be one."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest
import torch
from tests.store.made import made_path

from isoloss import InputError, ResultsError, open_results
from isoloss import Path as Walk
from isoloss.disk import DamagedError, atomically, open_plain, read_bytes, refuse_links
from isoloss.files import read_table, write_table, write_text
from isoloss.store import run_folder
from isoloss.store.folder import begin, save_walk
from isoloss.store.generations import Generations, write_blocks


def test_a_link_beside_a_file_is_replaced_and_what_it_led_to_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in (".a.json.part", "a.json"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "new"
    assert not (tmp_path / "a.json").is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "mine"]


def test_what_is_no_regular_file_is_not_read(tmp_path, refuses):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")  # whose reader would wait for ever
    with refuses("link is a symbolic link", "put a copy", error=ResultsError):
        read_bytes(tmp_path / "link")
    with refuses("pipe is not a regular file", error=DamagedError):
        read_bytes(tmp_path / "pipe")
    with refuses("a symbolic link", error=ResultsError):
        write_blocks(tmp_path / "link", {0: b"his"})
    with refuses("a symbolic link", error=ResultsError):
        open_plain(tmp_path / "link", "xb")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_table_that_would_fill_the_memory_is_damaged(tmp_path, refuses):
    stamp = write_table(tmp_path / "t", pd.DataFrame({"a": [0.0] * 2_000_000, "b": 1}))
    with refuses("hold 4000000 entries", error=DamagedError):
        read_table(tmp_path / "t", stamp)


def test_the_root_may_be_a_link_and_nothing_below_it(tmp_path, refuses):
    real = tmp_path / "real"
    made_path().save(real / "walk")
    (tmp_path / "root").symlink_to(real)
    assert Walk.load(tmp_path / "root" / "walk").level == made_path().level
    made_path(level=9.0).save(tmp_path / "root" / "walk")
    assert Walk.load(real / "walk").level == 9.0
    refuse_links(tmp_path / "root", tmp_path / "root" / "walk" / "new" / "file")
    (real / "walk" / "new").symlink_to(tmp_path)
    with refuses(str(tmp_path / "root" / "walk" / "new"), error=ResultsError):
        refuse_links(tmp_path / "root", tmp_path / "root" / "walk" / "new" / "file")


@pytest.mark.parametrize("name", ["outcome.json", "steps.parquet", "points.safetensors"])
def test_a_file_of_a_walk_that_is_a_link_is_not_read(tmp_path, name, refuses):
    made_path().save(tmp_path / "walk")
    shutil.move(tmp_path / "walk" / name, tmp_path / name)
    (tmp_path / "walk" / name).symlink_to(tmp_path / name)
    with refuses(f"{name} is a symbolic link", error=ResultsError):
        Walk.load(tmp_path / "walk")


@pytest.mark.parametrize("where", ["IRIS_FF", "IRIS_FF/traverse", "IRIS_FF/traverse/paper"])
def test_links_on_the_way_to_runs_are_named(tmp_path, where, refuses):
    folder = run_folder(tmp_path / "out", "IRIS_FF", "paper", 0)
    begin(folder, {"seed": 0}, {})
    save_walk(folder, made_path())
    shutil.move(tmp_path / "out" / where, tmp_path / "outside")
    (tmp_path / "out" / where).symlink_to(tmp_path / "outside")
    with refuses(f"{where} is a symbolic link", error=ResultsError):
        open_results(tmp_path / "out").paths("IRIS_FF", "paper")


def test_a_run_that_is_a_link_is_left_out_and_others_are_read(tmp_path):
    for k in range(2):
        folder = run_folder(tmp_path / "out", "IRIS_FF", "paper", k)
        begin(folder, {"seed": k}, {})
        save_walk(folder, made_path(points=made_path().points + k))
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    results = open_results(tmp_path / "out")
    assert len(results.paths("IRIS_FF", "paper")) == 1
    assert "run-001 is a symbolic link" in results.unfinished("IRIS_FF", "paper")["run-001"]


@pytest.mark.parametrize("name", ["a", "b", "points.bin"])
def test_a_slot_of_a_checkpoint_that_is_a_link_is_refused_and_kept(tmp_path, name, refuses):
    store = Generations(tmp_path / "c", tmp_path)
    for k in range(3):
        store.save({"n": k}, b"state", {k: torch.full((3,), float(k))})
    shutil.move(tmp_path / "c" / name, tmp_path / "outside")
    (tmp_path / "c" / name).symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    with refuses(f"c/{name} is a symbolic link", error=ResultsError):
        Generations(tmp_path / "c", tmp_path).load()
    assert (tmp_path / "outside").read_bytes() == before
    assert (tmp_path / "c" / name).is_symlink()
    assert not (tmp_path / "quarantine").exists()


def test_quarantine_is_not_moved_through_a_link(tmp_path, refuses):
    (tmp_path / "outside").mkdir()
    (tmp_path / "quarantine").symlink_to(tmp_path / "outside")
    store = Generations(tmp_path / "c", tmp_path)
    store.save({}, b"state", {})
    (tmp_path / "c" / "a").write_bytes(b"torn")
    with refuses("quarantine is a symbolic link", error=ResultsError):
        Generations(tmp_path / "c", tmp_path).load()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_mode_is_kept_and_a_folder_is_no_file(tmp_path):
    atomically(tmp_path / "a", lambda part: part.write_bytes(b"x"))
    assert (tmp_path / "a").stat().st_mode & 0o600 == 0o600
    with pytest.raises(DamagedError, match="is not a file in a folder"):
        read_bytes(tmp_path)
    with pytest.raises((InputError, DamagedError)):
        Walk.load(tmp_path)
