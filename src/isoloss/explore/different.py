"""Networks of one training loss that disagree most about a pool of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isoloss.arguments import checked, whole
from isoloss.errors import InputError, unknown
from isoloss.evaluation.arithmetic import undisturbed
from isoloss.explore.aside import check_varies
from isoloss.explore.cores import over_cores
from isoloss.explore.ends import End, Job, WalkTo, begin, share
from isoloss.losses import Loss, accuracy, binary_accuracy, mae, mse
from isoloss.methods import Method
from isoloss.path import Stop
from isoloss.problem import Problem, alone, inside
from isoloss.progress import count_progress
from isoloss.regularizers import Outputs, get_regularizer

if TYPE_CHECKING:
    import pandas as pd

USUAL = Stop(evaluations=200)
"""When a walk to another network stops by default."""
KINDS: tuple[tuple[Loss, str], ...] = (
    (accuracy, "classes"), (binary_accuracy, "binary"), (mse, "values"), (mae, "values"),
)  # fmt: skip
"""What the outputs are, by the metric."""
GIVEN = "given"


@dataclass(frozen=True)
class Different:
    """Networks of one training loss that disagree with a given one and with one another.

    The given one is that passed to `different`, which `level` or `hold` may not allow itself.

    Attributes:
        kind: What the outputs are: "classes", "binary" or "values".
        ends: Where each walk ended: `ends[0].path.load_into(model)`, `ends[0].loss`, ....
        outputs: What the given network and, after it, the others give for the pool, shape
            (networks + 1, examples, ...), in float64 where the model can be computed in it.
        disagreement: Between each two networks, the given one first: the share of the pool that
            they label differently; of values, the root mean square of their differences.
        table: A row for each network. Columns: disagreement (with the given one), nearest (the
            least one with any other), level_error, outcome, evaluations.
        ambiguity: Share of the pool that any of the networks labels otherwise than the given one
            does (Marx, Calmon and Ustun, ICML 2020); NaN for values.
        discrepancy: Share of the pool that the one which differs most labels otherwise (there);
            NaN for values.
        spread: Largest less least output of all networks, the mean over the pool; NaN for labels.
    """

    kind: str
    ends: tuple[End, ...]
    outputs: Tensor
    disagreement: pd.DataFrame
    table: pd.DataFrame
    ambiguity: float
    discrepancy: float
    spread: float

    @property
    def networks(self) -> Tensor:
        """The networks found, shape (networks, parameters)."""
        return torch.stack([end.theta for end in self.ends])

    def __repr__(self) -> str:
        """One line: how many, and how different."""
        far = self.disagreement[GIVEN].max()
        said = (
            f"spread {self.spread:.4g}"
            if self.kind == "values"
            else f"ambiguity {self.ambiguity:.4g}, discrepancy {self.discrepancy:.4g}"
        )
        return f"Different({len(self.ends)} networks, at most {far:.4g} from the given one, {said})"


@checked
@undisturbed()
def different(
    problem: Problem,
    pool: Any,
    count: int = 5,
    *,
    kind: str | None = None,
    start: Tensor | None = None,
    level: Any = None,
    hold: Any = None,
    method: str | Method = "sqp",
    rtol: float = 1e-3,
    atol: float | None = None,
    stop: Stop | None = None,
    gain: float | None = None,
    progress: bool = True,
) -> Different:
    """Networks of one training loss that disagree about a pool of inputs.

    One after another, each by a walk from the given network that makes small the probability, mean
    over the pool, of the labels which the given one and those found so far give it. Of values, it
    makes large the mean over these networks of log(1 + d / v), d the mean squared difference from
    one and v the variance of the given one's outputs.

    That probability is smooth where a share of labels is not, but it is not the share: it also
    falls where the same labels are given with less confidence. Networks with many parameters change
    labels all the same; a model of a few may end at one that is unsure and labels nearly alike,
    while others of the same loss change many more. How many labels can be changed at all, the
    extents of the log odds of single examples tell (`isoloss.extent`): those that cross 0.

    The given network is the one passed, as it is. Where `level` or `hold` moves the start, walks
    begin at the point to which it is brought, and what they find is still compared with the
    network passed, which need not meet what is held.

    The training loss says nothing about inputs unlike the training set's: without a further
    constraint, such as a validation loss in `hold`, what is found differs more, and is worse, than
    what anybody would deploy.

    Args:
        problem: The training loss.
        pool: Inputs, as the model takes them; they need no targets.
        count: How many networks to find.
        kind: What the outputs are: `"classes"`, scores along the second axis; `"binary"`, a logit
            each; or `"values"`. None goes by the problem's metric.
        start: The given network, shape (problem.size,); None takes the model's present weights.
        level: The loss to hold, as for `traverse`; None holds the start's.
        hold: Further constraints, as for `traverse`.
        method: As for `traverse`.
        rtol: Relative tolerance of the level.
        atol: Absolute tolerance of the level, in place of `rtol`.
        stop: When each walk stops; `Stop(evaluations=200)` by default. The longer, the
            more the networks differ.
        gain: A walk also ends, with `Outcome.SLOWED`, once ten steps gain less than this share of
            all that it gained. None takes `stop.gain`, as for `extent`; 0 for no such end.
        progress: Show on a terminal how many networks there are.

    Returns:
        The networks and what they disagree about. Ctrl-C returns those found by then.

    Raises:
        InputError: A value cannot be used, the pool holds no example, the level cannot be reached,
            or the model's outputs are not one tensor.
    """
    stop = stop or USUAL
    count, gain = whole("count", count, 1), share(gain, stop)
    kind = _kind(kind, problem)
    if isinstance(pool, type):
        raise InputError(f"pool must hold inputs, got the class {pool.__name__}")
    try:
        Outputs(pool, lambda outputs: outputs)  # looks at the inputs
    except InputError as error:
        raise InputError(f"pool cannot be used: {error}") from error
    theta, settings = begin(
        problem, start, level=level, hold=hold, method=method, rtol=rtol, atol=atol
    )
    settings["stop"] = stop
    given = problem.current() if start is None else start.detach().to(theta)
    exact = problem.with_dtype(torch.float64)
    outputs, ends = [_outputs(problem, exact, pool, given)], list[End]()
    with count_progress(enabled=progress, total=count, what="different") as show:
        try:
            while len(ends) < count:
                quantity = Outputs(pool, _agreement(kind, outputs), "agreement")
                check_varies(get_regularizer(quantity, problem), problem, theta)
                work = WalkTo(problem, {"": quantity}, settings, gain)
                for _, end in over_cores(work, [Job("", False, theta, 0.0)], workers=1):
                    ends.append(end)
                    outputs.append(_outputs(problem, exact, pool, end.theta))
                    apart = _apart(kind, outputs[-1], outputs[0])
                    show(f"{_size(kind, apart):.3g} from the given network")
        except KeyboardInterrupt:
            if not ends:
                raise
    return _measured(kind, ends, torch.stack(outputs))


def _kind(given: str | None, problem: Problem) -> str:
    known = sorted({kind for _, kind in KINDS})
    if given is None:
        found = next((kind for metric, kind in KINDS if metric == inside(problem).metric), None)
        if found is None:
            raise InputError(
                "what the outputs are cannot be told from this problem's metric; give kind="
                "'classes', 'binary' or 'values'"
            )
        return found
    if given not in known:
        raise unknown("kind of outputs", given, known)
    return given


def _outputs(problem: Problem, exact: Problem, pool: Any, theta: Tensor) -> Tensor:
    """What a network gives for the pool, in float64 where it can."""
    try:
        return _given_by(exact, pool, theta.double())
    except Exception:  # the model holds float32 tensors of its own; or the pool is refused below
        return _given_by(problem, pool, theta).double()


def _given_by(problem: Problem, pool: Any, theta: Tensor) -> Tensor:
    own = inside(problem)
    evaluation = own.autograd.on(own.chunks.alike(pool))
    with alone(problem):
        outputs = [one for _, one in evaluation.outputs(theta)]
    if not outputs or not all(isinstance(one, Tensor) and one.ndim for one in outputs):
        raise InputError(
            "the model must give one tensor for the pool, with the examples along the first axis; "
            "wrap it so that it does"
        )
    return torch.cat(outputs)


def _labels(kind: str, outputs: Tensor) -> Tensor:
    return outputs.argmax(1) if kind == "classes" else outputs > 0


def _agreement(kind: str, before: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """What a walk makes small: how much outputs agree with those of earlier networks."""
    if kind == "values":
        spread = before[0].var(correction=0).item() or 1.0

        def near(outputs: Tensor) -> Tensor:
            apart = [(outputs - one.to(outputs)).square().mean() / spread for one in before]
            return -torch.stack(apart).log1p().mean()

        return near
    labels = [_labels(kind, one) for one in before]

    def likely(outputs: Tensor) -> Tensor:
        if kind == "classes":
            chances = outputs.softmax(1)
            each = [chances.gather(1, one.unsqueeze(1)).mean() for one in labels]
        else:
            each = [torch.where(one, outputs, -outputs).sigmoid().mean() for one in labels]
        return torch.stack(each).mean()

    return likely


def _apart(kind: str, one: Tensor, other: Tensor) -> Tensor:
    """How much two networks disagree about each example of the pool, shape (examples,)."""
    if kind == "values":
        return (one - other).square().flatten(1).mean(1) if one.ndim > 1 else (one - other) ** 2
    differ = (_labels(kind, one) != _labels(kind, other)).double()
    return differ.flatten(1).mean(1) if differ.ndim > 1 else differ


def _size(kind: str, apart: Tensor) -> float:
    mean = apart.mean().item()
    return mean**0.5 if kind == "values" else mean


def _measured(kind: str, ends: Sequence[End], outputs: Tensor) -> Different:
    import pandas as pd  # slow to load

    names = [GIVEN, *(str(k) for k in range(1, len(outputs)))]
    sizes = [[_size(kind, _apart(kind, a, b)) for b in outputs] for a in outputs]
    disagreement = pd.DataFrame(sizes, index=names, columns=names)
    rows = [
        {
            "disagreement": row[0],
            "nearest": min(size for j, size in enumerate(row) if j != k),
            "level_error": end.level_error,
            "outcome": end.outcome.value,
            "evaluations": end.evaluations,
        }
        for k, (row, end) in enumerate(zip(sizes[1:], ends, strict=True), 1)
    ]
    values = kind == "values"
    from_given = torch.stack([_apart(kind, one, outputs[0]) for one in outputs[1:]])
    return Different(
        kind=kind,
        ends=tuple(ends),
        outputs=outputs,
        disagreement=disagreement,
        table=pd.DataFrame(rows, index=pd.Index(names[1:], name="network")),
        ambiguity=math.nan if values else from_given.amax(0).mean().item(),
        discrepancy=math.nan if values else from_given.mean(1).max().item(),
        spread=(outputs.amax(0) - outputs.amin(0)).mean().item() if values else math.nan,
    )
