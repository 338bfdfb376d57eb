"""Runs on a Ray cluster of two nodes: what dies, what is told, how all are stopped."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.runs.test_pool import Made, Toy

from isoloss import experiments
from isoloss.cli import main
from isoloss.runs import cluster as clusters
from isoloss.runs.cluster import Cluster, _look_around, _Sealed
from isoloss.runs.place import Place
from isoloss.runs.run import Contact, News
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store.folder import problem
from isoloss.store.lock import LockedError, only_writer

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
IMPATIENT = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 600}
"""Ray gives a node up that does not answer five times, otherwise 3 seconds apart."""
STEPS = 700


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each; a test kills the second one."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:  # so that tasks find this file
        here = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head = {**NODE, **bare, "_system_config": IMPATIENT}
        made = Nodes(initialize_head=True, head_node_args=head)
        made.second = made.add_node(**NODE)
    before = signal.getsignal(signal.SIGTERM)
    opened(Cluster(made.address), tmp_path_factory.mktemp("connected"))
    assert signal.getsignal(signal.SIGTERM) is before  # Ray puts its own there
    yield made
    ray.shutdown()
    made.shutdown()


def go(nodes: Any, runs: Any, when: Callable[[News], None] = lambda news: None) -> tuple[int, Any]:
    lasts: dict[int, News] = {}

    def show(news: News) -> None:
        assert news.index not in lasts
        if news.phase == "done":
            lasts[news.index] = news
        when(news)

    folder = runs[0].folder.parent
    with Cluster(nodes.address).opened(folder, [], lambda sentence: None) as execute:
        assert [file.name for file in folder.glob(".seen*")]
        code = execute(runs, show)
    assert not list(folder.glob(".seen*"))
    return code, lasts


def walks(folder: Path) -> list[WalkRun]:
    settings = walk_settings(experiments.get("IRIS_FF"), "paper", [f"steps={STEPS}"])
    return [WalkRun(k, k, folder / f"run-{k:03d}", settings, 0.05) for k in range(2)]


def written(run: WalkRun) -> tuple[bytes, bytes, pd.DataFrame]:
    """All that a run wrote but times."""
    table = pd.read_parquet(run.folder / "steps.parquet").drop(columns="seconds")
    files = [(run.folder / name).read_bytes() for name in ("points.safetensors", "config.json")]
    return files[0], files[1], table


def parent(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


@pytest.mark.slow
def test_a_node_that_dies_costs_time_and_not_a_bit(nodes: Any, tmp_path: Path) -> None:
    raylet = nodes.second.all_processes["raylet"][0].process.pid
    killed: list[int] = []

    def when(news: News) -> None:
        if killed or news.phase != "walking" or not 20 < news.done < STEPS - 100:
            return
        note = tmp_path / "ray" / f".run-{news.index:03d}.holder.json"
        run = json.loads(note.read_text())["pid"]
        task = parent(parent(run))  # between them is the server that forked the run's process
        if parent(task) == raylet:
            for pid in (raylet, task, run):
                os.kill(pid, signal.SIGKILL)
            nodes.remove_node(nodes.second, allow_graceful=False)
            killed.append(news.index)

    runs = walks(tmp_path / "ray")
    code, lasts = go(nodes, runs, when)
    assert code == 0
    (index,) = killed
    died, survived = lasts[index], lasts[1 - index]
    assert "did not end properly" in died.notes[0]
    assert "its node or process died, and it was continued elsewhere" in died.notes[1]
    assert survived.notes == ()
    local = walks(tmp_path / "local")[index]
    assert not local.execute(lambda news: None, bool).failed
    *files, table = written(runs[index])
    *expected, steps = written(local)
    assert files == expected
    pd.testing.assert_frame_equal(table, steps, check_exact=True)
    assert len(steps) == STEPS + 1


class Told(Toy):
    """One that says where it is, and does more of what may happen on a cluster."""

    def _work(self, contact: Contact) -> News:
        import torch

        row = {"cwd": str(Path.cwd()), "pid": os.getpid(), "torch": torch.get_num_threads()}
        row["data"] = os.environ.get("ISOLOSS_DATA")
        contact.tell("training", row=row)
        if self.settings.does == "told to go" and not (self.folder / "went").exists():
            (self.folder / "went").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            while not contact.tell("walking", 1):
                time.sleep(0.01)
            return News(self.index, "done", 1, ending="interrupted")
        return replace(super()._work(contact), row=row)


def toys(folder: Path, *what: str) -> list[Told]:
    return [Told(k, k, folder / f"run-{k:03d}", Made(does)) for k, does in enumerate(what)]


@pytest.mark.slow
def test_a_run_is_where_the_command_is_and_may_die(nodes, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOLOSS_DATA", "beside/me")
    runs = toys(Path("out"), "9", "told to go")
    code, lasts = go(nodes, runs)
    assert code == 0
    assert "killed by SIGKILL, perhaps because memory ran out; run the same" in lasts[0].ending
    assert lasts[0].failed
    assert problem(runs[0].folder) == lasts[0].ending
    assert (lasts[1].ending, lasts[1].failed) == ("finished", False)
    assert "continued elsewhere" in lasts[1].notes[-1]
    row = lasts[1].row
    assert (row["cwd"], row["data"], row["torch"]) == (str(tmp_path), "beside/me", 1)


@pytest.mark.slow
def test_a_signal_lets_all_keep_their_step_and_starts_no_more(nodes, tmp_path: Path) -> None:
    def when(news: News) -> None:
        if news.phase == "walking":
            os.kill(os.getpid(), signal.SIGTERM)

    ended, lasts = go(nodes, toys(tmp_path, *["waits"] * 5), when)
    assert ended == 143
    assert 0 < len(lasts) < 5
    assert all(news.interrupted for news in lasts.values())


@pytest.mark.slow
def test_ctrl_c_a_second_time_does_not_wait(nodes, tmp_path: Path) -> None:
    pids: list[int] = []

    def when(news: News) -> None:
        if news.row and not pids:
            pids.append(news.row["pid"])
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.2)
            os.kill(os.getpid(), signal.SIGINT)

    code, lasts = go(nodes, toys(tmp_path, "hangs"), when)
    assert code == 130
    assert "second Ctrl-C" in lasts[0].ending
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pids[0]}").exists():
        assert time.monotonic() < deadline, "the run's process is left behind"
        time.sleep(0.1)


@pytest.mark.slow
def test_what_the_nodes_have_not_is_said_before_anything_runs(nodes, tmp_path, refuses) -> None:
    with refuses("1 CPU and 0.5 GPU", "and 0 GPUs on", "--gpus-per-run"):
        opened(Cluster(nodes.address, 0.5), tmp_path)
    able = [node for node in ray.nodes() if node["Alive"]]
    with Place.here(tmp_path, [Path(__file__)]) as place:
        assert Path(place.locked).parent == tmp_path
        _look_around(ray, able, place)
        seen, other = place.files, {__file__: "of another"}
        for wrong, words in [
            (replace(place, folder=str(tmp_path / "gone")), ["gone", "that all nodes share"]),
            (replace(place, files=seen | other), [__file__, "does not see"]),
            (replace(place, version="9.9"), ["isoloss", "9.9", "install the same"]),
            (replace(place, locked=__file__), ["could be locked again", "-o flock", "--out"]),
        ]:
            with refuses(socket.gethostname(), *words):
                _look_around(ray, able, wrong)


def opened(cluster: Cluster, folder: Path) -> None:
    with cluster.opened(folder, [], lambda sentence: None):
        pass


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("tried for minutes"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(clusters, "SECONDS_TO_CONNECT", 0.3)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "refused"),
        (b"", "timed out"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "what answers there is something else"),
    ],
)
def test_an_address_where_no_ray_answers(unconnected, tmp_path, refuses, answer, why) -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            line, _ = server.accept()
            line.sendall(answer)
            line.recv(100)
            line.close()

        serving = threading.Thread(target=serve, daemon=True)
        if answer is None:
            server.close()
        elif answer:  # else it takes the connection, and is silent
            serving.start()
        with refuses(address, f"{why})", "no Ray can be reached", "ray start --head"):
            opened(Cluster(address), tmp_path)
        if answer:
            serving.join(timeout=10)


def test_an_address_that_is_none_is_refused(unconnected, tmp_path, refuses, monkeypatch) -> None:
    for address in ("banana", "localhost:port", ":", "127.0.0.1:99999", "nowhere.invalid:6379"):
        with refuses(repr(address), "no Ray can be reached"):
            opened(Cluster(address), tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with refuses("127.0.0.1:1", "no Ray can be reached"):
        opened(Cluster(), tmp_path)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(OSError("no\nspace")))
    for left in (None, "127.0.0.1:1"):  # by a Ray that was not stopped properly
        found = "ray._private.services.canonicalize_bootstrap_address"
        monkeypatch.setattr(found, lambda address, left=left: left)
        with refuses("Ray cannot be started here (no space)"):
            opened(Cluster(), tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--engine rya", "unknown engine 'rya'; did you mean ray?"),
        ("--address auto", "--address auto is for Ray; give --engine ray"),
        ("--gpus-per-run 0.5", "--gpus-per-run 0.5 is for Ray"),
        ("--engine ray --gpus-per-run 2", "must be a finite number from 0.0001 to 1, got 2"),
        ("--engine ray --gpus-per-run 0", "must be a finite number from 0.0001 to 1, got 0"),
        ("--engine ray --device cuda", "give --gpus-per-run 1, or --device cpu"),
        ("--engine ray --gpus-per-run 1 --device cpu", "leave out one"),
    ],
)
def test_wrong_options_are_a_sentence(words, said, tmp_path, capsys) -> None:
    for command in ("traverse", "decay", "compare", "reproduce"):
        with pytest.raises(SystemExit) as end:
            main([command, "IRIS_FF", "--out", str(tmp_path), *words.split()])
        assert end.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_without_ray_it_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as end:
        main(["traverse", "IRIS_FF", "--engine", "ray"])
    assert end.value.code == 2
    assert "pip install 'isoloss[ray]'" in capsys.readouterr().err


def test_a_task_loads_neither_torch_nor_does_a_command_load_ray() -> None:
    code = "import isoloss.runs.cluster, isoloss.cli, sys; print({'torch', 'ray'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_run_begun_again_waits_until_its_folder_is_let_go_of(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # which it says
    (run,) = toys(tmp_path, "")
    (patient,) = pickle.loads(pickle.dumps(_Sealed(pickle.dumps(run), 20.0)))
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with only_writer(run.folder):
            held.set()
            enough.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(LockedError):
        run.execute(lambda news: None, lambda: False)
    with pytest.raises(LockedError):
        patient.execute(lambda news: None, lambda: True)  # told to stop
    threading.Timer(0.3, enough.set).start()
    assert patient.execute(lambda news: None, lambda: False).ending == "finished"
    holder.join()
