"""What the numbers of a front must be: found again from its weights and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from isoloss import experiments
from isoloss.explore.branches import FALLING, RISING
from isoloss.explore.front import Front
from isoloss.objective import Objective
from isoloss.report.verify.checks import NOT_DONE, OF_SLOPES, Check, bound, columns, facts, problems

ROUNDING = 1e-5
"""By how much of the level the rounding of the loss may carry an end out of the tolerance."""


def front_checks(front: Front, config: Mapping[str, Any], name: str) -> Iterator[Check]:
    """All that follows from the files of a front."""
    table = front.table
    reached = table["regularizer"].notna().to_numpy()
    finite = front.points.isfinite().all(dim=1).numpy()
    wrong = list(_rows(table, config))
    if (reached != finite).any():
        wrong.append("there are weights of levels that were not reached, or none of others")
    yield from facts(name, f"rows ({len(table)})", wrong)
    recorded: pd.DataFrame = table.loc[reached].reset_index(drop=True)
    off = np.abs(recorded["level_error"].to_numpy(float)).max(initial=0.0)
    yield bound(name, "loss on the level", float(off), config["rtol"] + ROUNDING, len(recorded))
    if config["experiment"] not in experiments.names():
        yield Check(name, "computed again", f"{NOT_DONE}: your own project", "")
        return
    known, dtype = experiments.get(config["experiment"]), config["dtype"]
    training, test, flips = problems(known, config["seed"], known.data(config["seed"]))
    points = front.points[torch.tensor(np.flatnonzero(reached))]
    now = _evaluated(Objective(training, front.regularizer), points.double())
    now[["test_loss", "test_metric"]] = [*map(test.evaluate, points.double())]
    whole = np.full(len(recorded), True)
    needed = {str(column): whole for column in now if column not in ("slope", *OF_SLOPES)}
    rounded = training.with_dtype(points.dtype)
    yield from columns(
        name, recorded, now, needed, dtype, flips,
        lambda: _evaluated(Objective(rounded, front.regularizer), points),
    )  # fmt: skip


def _evaluated(objective: Objective, points: torch.Tensor) -> pd.DataFrame:
    values = [objective.evaluate(point) for point in points]
    names = ("loss", "regularizer", "kkt_residual", "equivalent_penalty")
    found = pd.DataFrame({name: [getattr(one, name) for one in values] for name in names})
    slopes = [one.grad_norm / one.regularizer_grad.norm().item() for one in values]
    return found.assign(slope=slopes)


def _rows(table: pd.DataFrame, config: Mapping[str, Any]) -> Iterator[str]:
    """What the rows say that cannot be."""
    levels = sorted(set(table["level"].to_list()))
    wanted = config.get("levels") or []
    if len(levels) != (len(wanted) or config.get("count")) or (wanted and levels != wanted):
        yield "the levels are not those that the settings ask for"
    if not set(table["direction"]) <= {RISING, FALLING}:
        yield f"the directions must be {RISING} and {FALLING}"
    if table.duplicated(["level", "start", "direction"]).any():
        yield "a level is there twice in one direction"
    far = table["kkt_residual"] > config["stop"]["kkt_residual"]
    if (far & (table["outcome"] == "converged")).any():
        yield "an end is said to have converged but has a larger KKT residual"
    loss, level, error = (table[c].to_numpy(float) for c in ("loss", "level", "level_error"))
    if (np.abs(loss / level - 1 - error) > 1e-9).any():
        yield "level_error is not that of loss and level"
