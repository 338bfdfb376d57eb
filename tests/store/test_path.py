"""`Path.save` and `Path.load`."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from tests.problems import normal
from tests.store.made import made_path
from torch import Tensor, nn

from isoloss import Path, Problem, ResultsError, Stop, traverse
from isoloss.store import run_folder
from isoloss.store.folder import Stack, begin, save_decay, save_failure, save_walk

FILES = ["outcome.json", "points.safetensors", "steps.parquet"]
FIELDS = (
    "point_steps", "level", "outcome", "message", "method", "regularizer", "shapes", "frozen",
    "state_keys",
)  # fmt: skip


def same(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(one.steps, other.steps, check_exact=True)
    assert torch.equal(one.points, other.points)
    assert one.points.dtype == other.points.dtype
    assert [getattr(one, name) for name in FIELDS] == [getattr(other, name) for name in FIELDS]
    assert list(one.shapes) == list(other.shapes)
    assert one.buffers.keys() == other.buffers.keys()
    for name, buffer in one.buffers.items():
        assert torch.equal(buffer, other.buffers[name])
        assert buffer.dtype == other.buffers[name].dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    path = made_path(points=made_path().points.to(dtype))
    path.save(tmp_path / "new" / "walk")
    assert sorted(file.name for file in (tmp_path / "new" / "walk").iterdir()) == FILES
    same(Path.load(str(tmp_path / "new" / "walk")), path)


def test_complex_buffers_are_saved(tmp_path):
    each = {str(k): (normal(3, 2, seed=0) + 1j).to(k) for k in (torch.complex64, torch.complex128)}
    path = made_path(
        buffers={"plain": torch.arange(3), "turned": each["torch.complex64"].conj()} | each
    )
    path.save(tmp_path)
    same(Path.load(tmp_path), path)


def test_buffers_that_share_memory_are_saved(tmp_path):
    base = torch.arange(4.0)
    path = made_path(buffers={"a": base, "b": base[1:], "c": base})
    path.save(tmp_path)
    same(Path.load(tmp_path), path)
    empty = made_path(points=torch.empty(0), point_steps=[], buffers={})
    empty.save(tmp_path / "empty")
    assert Path.load(tmp_path / "empty").points.shape == (0,)


class Net(nn.Module):
    """With running statistics, a frozen layer and one weight that is used twice."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
            self.frozen, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)
        self.again.weight = self.shared = nn.Parameter(self.again.weight.detach() / 2)
        self.frozen.requires_grad_(False)
        self.double()
        self(3 * normal(40, 4, seed=1) + seed)  # statistics of its own
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.again(self.frozen(self.norm(self.first(x)))).tanh()
        return self.last(hidden @ self.shared)


def test_a_walk_that_was_loaded_gives_its_loss_in_plain_torch(tmp_path, refuses):
    inputs, targets = normal(40, 4, seed=2), torch.arange(40) % 3
    problem = Problem(Net(0), "cross_entropy", (inputs, targets))
    path = traverse(problem, stop=Stop(steps=5), progress=False)
    assert path.frozen
    assert path.state_keys["again.weight"] == path.state_keys["shared"]
    path.save(tmp_path)
    loaded = Path.load(tmp_path)
    same(loaded, path)
    assert loaded.points.device.type == "cpu"

    def loss(model: nn.Module) -> float:
        return nn.functional.cross_entropy(model(inputs), targets).item()

    for k, step in enumerate(loaded.point_steps):
        recorded = pytest.approx(path.steps["loss"][step], rel=1e-12)
        into, fresh = Net(0), Net(1)
        fresh.frozen.load_state_dict(into.frozen.state_dict())
        into.norm.reset_running_stats()
        loaded.load_into(into, k)
        fresh.load_state_dict(loaded.state_dict(k), strict=False)
        assert loss(into) == recorded
        assert loss(fresh) == recorded
    with refuses("frozen parameter 'frozen.weight'"):
        loaded.load_into(Net(1))


def test_an_earlier_path_is_replaced_and_nothing_else(tmp_path, refuses):
    made_path().save(tmp_path / "w")
    made_path(level=9.0).save(tmp_path / "w")
    assert Path.load(tmp_path / "w").level == 9.0
    for name in ("mine.txt", "config.json", "steps.parquet"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        if name != "steps.parquet":
            made_path().save(folder)
        (folder / name).write_text("mine")
        with refuses("folder must be new, empty, or hold an earlier path", name):
            made_path().save(folder)
        assert (folder / name).read_text() == "mine"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "outcome.json").write_text("{}")  # of somebody else
    with refuses("outcome.json", error=ResultsError):
        made_path().save(tmp_path / "empty")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made_path().save("~/walk")
    assert (tmp_path / "walk" / "outcome.json").exists()
    same(Path.load("~/walk"), made_path())


@pytest.mark.parametrize("folder", [None, 3, "", b"walk"])
@pytest.mark.parametrize("do", [Path.load, lambda folder: made_path().save(folder)])
def test_what_is_no_folder_is_refused(folder, do, refuses):
    with refuses("folder must be a path such as", repr(folder)):
        do(folder)


def test_what_holds_no_path_is_refused(tmp_path, refuses):
    with refuses("nowhere", "is not there"):
        Path.load(tmp_path / "nowhere")
    with refuses("has no outcome.json"):
        Path.load(tmp_path)
    (tmp_path / "file").touch()
    with refuses("the file", "file"):
        Path.load(tmp_path / "file")
    begin(tmp_path / "decay", {"seed": 0}, {})
    table = pd.DataFrame({"epoch": [1], "penalty": [0.0]})
    stack = Stack(table, torch.zeros(1, 3), torch.tensor([-1]))
    save_decay(tmp_path / "decay", stack, None, start=torch.zeros(3), indices=torch.arange(2))
    with refuses("decay", "holds something else"):
        Path.load(tmp_path / "decay")
    save_failure(tmp_path / "failed", "no memory")
    with refuses("failed", "no memory", error=ResultsError):
        Path.load(tmp_path / "failed")


def test_a_run_of_the_commands_is_a_path_whose_buffers_are_kept(tmp_path):
    folder = run_folder(tmp_path, "IRIS_FF", "paper", 0)
    begin(folder, {"seed": 3}, {"torch": "x"})
    save_walk(folder, made_path(), {"indices": torch.tensor([4, 2])})
    path = Path.load(folder)
    same(path, made_path())
    assert path.metadata["folder"] == str(folder)
    assert (path.metadata["config"], path.metadata["made_with"]) == ({"seed": 3}, {"torch": "x"})
    assert path.metadata["tensors"]["indices"].tolist() == [4, 2]
    path.save(tmp_path / "copy")
    same(Path.load(tmp_path / "copy"), path)


def test_buffers_that_are_no_tensors_are_refused(refuses) -> None:
    with refuses("buffers['mean'] must be a tensor, got a list"):
        made_path(buffers={"mean": [1.0]})
