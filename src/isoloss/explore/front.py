"""The front: how small a regularizer can be at each level of the training loss."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoloss.arguments import checked
from isoloss.constraints import Constraint
from isoloss.disk import DamagedError, as_folder
from isoloss.errors import InputError, shown
from isoloss.evaluation.arithmetic import undisturbed
from isoloss.explore.branches import (
    COLUMNS,
    Branch,
    Plan,
    follow,
)
from isoloss.explore.cores import over_cores, workers_for
from isoloss.explore.levels import COUNT, given_levels, spaced_levels, starts_of
from isoloss.files import OUTCOME, read_ending, read_json, read_table, read_tensors, write_folder
from isoloss.methods import SQP
from isoloss.names import load_into
from isoloss.path import POINTS, Row, Stop, check_table
from isoloss.problem import Problem
from isoloss.progress import count_progress
from isoloss.regularizers import AnyRegularizer, get_regularizer
from isoloss.store.folder import FRONT
from isoloss.walking import checked_probes

if TYPE_CHECKING:
    import pandas as pd

EVALUATIONS = 1000
"""Evaluations at one level of one branch where it does not converge."""
SAME = 0.002
"""Relative difference of R up to which two ends at one level are taken for one."""
NOTHING = 1e-6
"""Share of the largest |R| of a front up to which a difference of R is taken for none."""


@dataclass(frozen=True)
class Front:
    """How small a regularizer R was found to be at each level of the loss, branch by branch.

    Attributes:
        table: A row per level and branch. Columns: level; start (which one, from 0); direction
            (`rising` from the lowest level up, or `falling` back down); branch (a number: ends at
            one level with the same R, to 0.2 % or a millionth of the largest R of all, are one
            branch); loss (computed again in float64);
            level_error ((L - c) / c); regularizer, kkt_residual and equivalent_penalty at the end,
            NaN where the level was not reached; outcome; evaluations (of this level alone); and
            `NAME_loss`, `NAME_metric` of each probe.
        points: Weights of the end of each row, shape (rows, parameters); NaN where the level was
            not reached.
        regularizer: Its name.
        shapes: Shape of each parameter by name, in the order of theta.
    """

    table: pd.DataFrame
    points: Tensor
    regularizer: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    @property
    def best(self) -> pd.DataFrame:
        """The row with the smallest regularizer at each level that was reached, levels ascending.

        Its index is the number of the row in `table` and in `points`.
        """
        reached: Any = self.table.dropna(subset=["regularizer"])
        return reached.loc[reached.groupby("level")["regularizer"].idxmin().to_list(), :]

    @property
    def folds(self) -> pd.DataFrame:
        """Where a start's two directions differ: levels with several stationary networks.

        Returns:
            Columns `level`, `start`, `rising` and `falling`: R of each direction; NaN where the
            branch ends, as the level was not reached from there.
        """
        import pandas as pd

        at: Any = pd.pivot_table(
            self.table, values="regularizer", index=["level", "start"], columns="direction",
            dropna=False, observed=True,
        ).reset_index()  # fmt: skip
        at = at.reindex(columns=["level", "start", "rising", "falling"])
        top = self.table["level"].max()
        largest = max(map(abs, self.table["regularizer"].dropna().to_list()), default=0.0)
        apart = ~_same(at["rising"], at["falling"], largest) & (at["level"] < top)
        both = at["rising"].isna() & at["falling"].isna()
        return at[apart & ~both].reset_index(drop=True).rename_axis(columns=None)

    @property
    def evaluations(self) -> float:
        """Evaluations of all walks together."""
        return sum(self.table["evaluations"].to_list())

    @checked
    def load_into(self, model: nn.Module, row: int) -> None:
        """Write the network of a row of `table` into a model's parameters, in place, by name.

        The model's buffers stay as they are; they have to be those of the model that was walked.

        Args:
            model: A model of the architecture that was walked.
            row: The number of the row, for example one of `front.best.index`.

        Raises:
            InputError: There is no such row or no network of it, or the model is another.
        """
        if not 0 <= row < len(self.points) or self.points[row].isnan().any():
            raise InputError(
                f"row must be one of the {len(self.points)} of the table, with a level that was "
                f"reached, got {shown(row)}"
            )
        load_into(model, self.points[row], self.shapes)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the front to files, for `Front.load`.

        Args:
            folder: Where to: a folder that is new, empty, or holds an earlier front, which is
                replaced. It holds `front.parquet`, `points.safetensors` and, written last,
                `outcome.json` with the checksums of both.

        Raises:
            InputError: The folder holds anything else.
        """
        place = as_folder(folder)
        there = sorted(file.name for file in place.glob("[!.]*"))
        others = [name for name in there if name not in (FRONT, POINTS, OUTCOME)]
        if others or (there and OUTCOME not in there):
            raise InputError(
                f"folder must be new, empty, or hold an earlier front alone, got {place} with "
                f"{(others or there)[0]}"
            )
        if there:
            read_json(place / OUTCOME)
        write_folder(place, *self.content)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Front:
        """Read what `save` wrote, or the folder of a run of `isoloss front`.

        Args:
            folder: The folder.

        Returns:
            The front, bit for bit, on the CPU.

        Raises:
            InputError: There is no front in the folder.
            ResultsError: A file is missing, torn, changed or of another format.
        """
        place = as_folder(folder)
        if not (place / OUTCOME).exists():
            raise InputError(f"folder must hold a front that was saved, got {place}")
        found = read_ending(place)
        if not {FRONT, POINTS} <= found.stamps.keys() or "regularizer" not in found.content:
            raise InputError(f"folder must hold a front, got {place}, which holds something else")
        table = read_table(place / FRONT, found.stamps[FRONT])
        words = ["direction", "outcome"]
        check_table(place / FRONT, table, [c for c in COLUMNS if c not in words], words)
        try:
            points = read_tensors(place / POINTS, found.stamps[POINTS])["points"]
            shapes = {name: tuple(shape) for name, shape in found.content["shapes"]}
            if points.shape != (len(table), sum(map(math.prod, shapes.values()))):
                raise ValueError(f"points of shape {tuple(points.shape)}")
            return Front(table, points, str(found.content["regularizer"]), shapes)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{place} is damaged: {type(error).__name__}: {error}") from error

    @property
    def content(self) -> tuple[dict[str, Any], dict[str, pd.DataFrame | Mapping[str, Tensor]]]:
        """What its `outcome.json` says, and its files by name."""
        reached = len(self.table.dropna(subset=["regularizer"]))
        ending = {
            "outcome": "finished",
            "message": f"{reached} of {len(self.table)} ends are on their level.",
            "regularizer": self.regularizer,
            "shapes": [[name, list(shape)] for name, shape in self.shapes.items()],
        }
        return ending, {FRONT: self.table, POINTS: {"points": self.points}}

    def __repr__(self) -> str:
        """One line: levels, branches, regularizer, evaluations."""
        levels = sorted(set(self.table["level"].to_list()))
        return (
            f"Front({self.regularizer}, {len(levels)} levels from {levels[0]:.6g} to "
            f"{levels[-1]:.6g}, {len(set(self.table['branch'].to_list()))} branches, "
            f"{self.evaluations} evaluations)"
        )


@checked
@undisturbed()
def front(
    problem: Problem,
    *,
    levels: Iterable[float] | None = None,
    count: int | None = None,
    regularizer: AnyRegularizer = "squared_norm",
    starts: Tensor | Sequence[Tensor] | None = None,
    kkt: float = 1e-3,
    evaluations: int = EVALUATIONS,
    rtol: float = 1e-3,
    method: SQP | None = None,
    hold: Mapping[str, Constraint] | None = None,
    probes: Mapping[str, Problem] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Front:
    """How small a regularizer can be at each level of the loss, among the networks found.

    From each start a walk goes to the lowest level and along it to its end; from there to the next
    higher level, and so on to the highest, and then back down. What was learned of the loss on one
    level serves on the next. Where both directions end at different R there are several branches
    (`Front.folds`); `Front.best` takes the better one. That is the best that was found: a local
    minimum that neither direction meets is not seen, so give several starts.

    Args:
        problem: The training loss.
        levels: The losses to hold, positive, in any order.
        count: How many levels, at least 2, spaced by equal factors from the least loss of the
            starts to 0.9 times the loss with all weights zero; 20 where no levels are given.
        regularizer: What is made small, as for `traverse`.
        starts: Where to start, shape (problem.size,) or (starts, problem.size), or a list of such
            vectors; None starts at the model's present weights. A branch begins a little beside a
            start that is stationary already, which may be an optimum of the opposite kind.
        kkt: KKT residual to which the walk along each level is taken.
        evaluations: Evaluations to use at one level of one branch.
        rtol: Relative tolerance of the levels, in (0, 1).
        method: Settings of the method; None is `SQP()`.
        hold: Further constraints, as for `traverse`.
        probes: Problems to measure at every end, by name, for example the test set's.
        checkpoint: Folder in which to keep the branches while they are followed; a call with the
            same settings goes on from there, to the same bits. None keeps nothing.
        workers: How many starts are followed at once, a process each; None as many as there are
            cores if there are many starts.
        progress: Show a progress line on a terminal.

    Returns:
        The front. Ctrl-C returns what there is.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """
    if levels is not None and count is not None:
        raise InputError("levels and count were both given; give one of them")
    thetas = starts_of(problem, starts)
    if levels is None:
        wanted = spaced_levels(problem, thetas, COUNT if count is None else count)
    else:
        wanted = given_levels(levels)
    plan = Plan(
        problem=problem,
        regularizer=regularizer,
        levels=wanted,
        stop=Stop(kkt_residual=kkt, evaluations=evaluations, gain=0),
        method=method or SQP(),
        rtol=rtol,
        probes=checked_probes(probes or {}, problem),
        also={} if hold is None else {"hold": hold},
        folder=None if checkpoint is None else as_folder(checkpoint),
    )
    several = workers_for(len(thetas), workers)
    found: dict[int, Branch] = {}
    total = len(thetas) * len(plan.legs)
    with count_progress(enabled=progress, total=total, what="levels") as show:
        work = _work(plan, show if several == 1 else None)
        try:
            for index, branch in over_cores(work, list(enumerate(thetas)), workers=several):
                found[index] = branch
                for row in branch.rows if several > 1 else ():
                    show(_figures(row))
        except KeyboardInterrupt:
            if not any(branch.rows for branch in found.values()):
                raise
    return gathered(plan, [found[index] for index in sorted(found)])


def gathered(plan: Plan, branches: Sequence[Branch]) -> Front:
    """The front that branches make together."""
    import pandas as pd

    rows = [row for branch in branches for row in branch.rows]
    probed = [f"{name}_{what}" for name in plan.probes for what in ("loss", "metric")]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *probed])
    table.insert(3, "branch", _numbered(rows))
    points = torch.stack([point for branch in branches for point in branch.points])
    order = table.sort_values(["level", "start"], kind="stable").index
    return Front(
        table=table.loc[order].reset_index(drop=True),
        points=points[order.to_list()],
        regularizer=get_regularizer(plan.regularizer, plan.problem).name,
        shapes=plan.problem.shapes,
    )


def _work(
    plan: Plan, show: Callable[[str], None] | None
) -> Callable[[tuple[int, Tensor], Callable[[], bool]], Branch]:
    def work(job: tuple[int, Tensor], stopping: Callable[[], bool]) -> Branch:
        done = 0

        def tell(leg: int, row: Row) -> bool:
            nonlocal done
            while show is not None and done < leg:
                done += 1
                show(_figures(row))
            return stopping()

        return follow(plan, *job, tell)

    return work


def _figures(row: Row) -> str:
    return f"loss {row['loss']:.4g}, R {row['regularizer']:.4g}"


def _same(one: Any, other: Any, largest: float) -> Any:
    """Whether regularizers, or tables of them, are the same to what an end is known to."""
    near = abs(one - other)
    return (near <= SAME * abs(one)) | (near <= NOTHING * largest)


def _numbered(rows: Sequence[Row]) -> list[int]:
    """The branch of each end: the one it meets at its level, or else its walk's own."""
    seen: dict[float, list[tuple[float, int]]] = {}  # ends by level: R and branch
    numbers: list[int] = []
    reached = [abs(row["regularizer"]) for row in rows if not math.isnan(row["regularizer"])]
    largest = max(reached, default=0.0)
    start, latest = None, -1
    for row in rows:
        here, value = seen.setdefault(row["level"], []), row["regularizer"]
        met = [branch for other, branch in here if _same(other, value, largest)]
        if met:
            latest = met[0]
        elif row["start"] != start or any(branch == latest for _, branch in here):
            latest = max(numbers, default=-1) + 1
        start = row["start"]
        here.append((value, latest))
        numbers.append(latest)
    return numbers
