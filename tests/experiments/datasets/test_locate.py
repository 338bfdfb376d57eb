"""Where files are looked for, and the check of their hash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.datasets.made import described, placed

from isoloss.errors import InputError
from isoloss.experiments.datasets import DataError, files, locate

CONTENT = b"the official bytes"


def test_the_table_is_complete() -> None:
    assert files.names() == ("iris", "auto_mpg", "mnist", "cifar10")
    for name in files.names():
        for form in files.forms(name):
            for file in form:
                assert file.dataset == name
                assert file.path.startswith(f"{name}/")
                assert (len(file.md5), len(file.sha256)) == (32, 64)
                assert file.license
        assert all(file.urls for file in files.forms(name)[-1])


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown data set 'mnits'; did you mean mnist"):
        files.forms("mnits")


def test_the_users_folder_comes_before_the_cache(own: Path, cache: Path) -> None:
    [file] = placed(cache, {"toy/a": CONTENT})
    assert locate.find(file) == cache / "toy/a"
    placed(own, {"toy/a": CONTENT})
    assert locate.find(file) == own / "toy/a"
    assert locate.folders() == (own, cache)


def test_without_a_users_folder_there_is_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate.folders() == (cache,)
    monkeypatch.setenv("ISOLOSS_DATA", "")
    assert locate.folders() == (cache,)
    monkeypatch.setenv("ISOLOSS_DATA", "~/data")
    assert locate.folders() == (Path.home() / "data", cache)


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLOSS_DATA", "~no-such-user/data")
    with pytest.raises(DataError, match="ISOLOSS_DATA='~no-such-user/data' names no user's home"):
        locate.folders()


def test_a_file_that_cannot_be_read_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = placed(own, {"toy/a": CONTENT})

    def closed(path: Path, *arguments: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(Path, "read_bytes", closed)
    for ask in (locate.read, locate.check):
        with pytest.raises(DataError, match="toy/a cannot be read: Permission denied; check its"):
            ask(file)


def test_a_changed_file_is_not_read(own: Path) -> None:
    [file] = placed(own, {"toy/a": CONTENT})
    assert locate.read(file) == (CONTENT, own / "toy/a")
    (own / "toy/a").write_bytes(CONTENT[:-1] + b"?")
    for ask in (locate.read, locate.check):
        with pytest.raises(
            DataError, match=r"official file: its SHA-256 is .*; delete it, then run"
        ):
            ask(file)


def test_a_missing_file_is_named_with_the_folders(own: Path, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        locate.read(described("toy/a", CONTENT))
    assert str(caught.value) == (
        f"toy/a is not in {own} or {cache}; place it there, or run `isoloss data fetch toy`"
    )


def test_a_folder_is_not_a_file(own: Path) -> None:
    (own / "toy/a").mkdir(parents=True)
    assert locate.find(described("toy/a", CONTENT)) is None


def test_a_closed_folder_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(DataError, match="toy/a cannot be read: Permission denied; check its perm"):
        locate.find(described("toy/a", CONTENT))


def test_a_file_of_another_size_is_not_read(own: Path) -> None:
    [file] = placed(own, {"toy/a": CONTENT})
    (own / "toy/a").write_bytes(CONTENT[:-1])
    with pytest.raises(
        DataError, match="not the official file: it has 17 bytes instead of 18; del"
    ):
        locate.read(file)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(position=st.integers(0, len(CONTENT) - 1), change=st.integers(1, 255))
def test_every_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    file = described("toy/a", CONTENT)
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(CONTENT)
    assert locate.damage(path, file) is None
    data = bytearray(CONTENT)
    data[position] ^= change
    path.write_bytes(data)
    assert f"instead of {file.sha256}" in str(locate.damage(path, file))
