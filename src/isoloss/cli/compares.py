"""`isoloss compare`."""

from __future__ import annotations

from pathlib import Path as FilePath

from isoloss import experiments
from isoloss.cli import options
from isoloss.cli.decays import Epochs
from isoloss.cli.options import Device, MethodName, Name, Out, Pairs, Restart
from isoloss.cli.running import run_unfinished
from isoloss.errors import InputError
from isoloss.runs.compare import after_decay_runs, equivalent_runs
from isoloss.runs.settings import WalkSettings, walk_settings
from isoloss.store import open_results


def compare(
    name: Name,
    method: MethodName = "sqp",
    epochs: Epochs = None,
    out: Out = FilePath("results"),
    device: Device = "auto",
    settings: Pairs = None,
    restart: Restart = False,
) -> None:
    """Walks and weight decay at equal training loss.

    Trains with the penalties at which walks ended, and walks from weight decay's best networks.
    """
    walk = walk_settings(options.experiment(name), method, settings or [], options.device(device))
    compare_all(walk, epochs, options.out_folder(out), restart=restart)


def compare_all(
    walk: WalkSettings, epochs: int | None, out: FilePath, *, restart: bool = False
) -> None:
    """Do those of both kinds of runs that are not finished, and print their summaries.

    Args:
        walk: How to walk from weight decay's best networks.
        epochs: Of weight decay; None takes the paper's.
        out: The results folder, which holds walks by the same method.
        restart: Move what there is of these runs aside and begin anew.

    Raises:
        InputError: There is no walk.
        Exit: A run failed, or Ctrl-C was pressed.
    """
    experiment, method = experiments.get(walk.subject.name), walk.method.name
    results = open_results(out)
    if not results.paths(experiment.name, method):
        raise InputError(
            f"{out} holds no walk of {experiment.name} by {method}; make one with 'isoloss "
            f"traverse {experiment.name} --method {method} --out {out}'"
        )
    trained = equivalent_runs(results, experiment, method, epochs, walk.device)
    if trained:
        title = f"{experiment.name} weight decay with the penalties of {method}"
        run_unfinished(title, experiment, trained, trained[0].epochs, restart=restart)
    walks = after_decay_runs(results, walk)
    if walks:
        steps = walk.stop.steps if walk.method.takes_all_steps else None
        title = f"{experiment.name} {method} from weight decay's best"
        run_unfinished(title, experiment, walks, steps, restart=restart)
