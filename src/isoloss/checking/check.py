"""`isoloss.check`: what a walk relies on, looked at one by one, in a table for a bug report."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from isoloss import __version__
from isoloss.arguments import check_fields, checked, whole
from isoloss.checking.exact import in_float64
from isoloss.checking.function import check_function, is_coarse, relative_noise
from isoloss.checking.memory import vectors_at_most
from isoloss.data import leaves
from isoloss.errors import IsolossError, one_line, said
from isoloss.evaluation import saved_bytes
from isoloss.evaluation.arithmetic import undisturbed
from isoloss.evaluation.differences import (
    RIGHT,
    allowed_coarsely,
    mismatch,
    random_direction,
    wrong_gradient,
)
from isoloss.flat import Layout
from isoloss.methods import SQP
from isoloss.path import Record
from isoloss.problem import Problem, inside, unrecorded
from isoloss.regularizers import AnyRegularizer, get_regularizer

OK, FAILED, NOTE = "ok", "FAILED", ""
USUAL_RTOL = 1e-3
SAME_HESSIAN = 1e-3
SAME_GRADIENT = {"exact": 1e-2, "tf32": 2e-2, "bf16": 1e-1}


@dataclass(frozen=True)
class Finding:
    """A row of the table."""

    what: str
    found: str
    status: str = NOTE  # or OK or FAILED; NOTE is for a figure without a verdict

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Check:
    """What `isoloss.check` found; printed, a Markdown table.

    Attributes:
        findings: Its rows.
    """

    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not any(finding.status == FAILED for finding in self.findings)

    def __str__(self) -> str:
        """A Markdown table."""
        rows = [(f.what, f.found.replace("|", "\\|"), f.status) for f in self.findings]
        return "\n".join(
            f"| {' | '.join(row)} |" for row in [("check", "found", ""), ("---",) * 3, *rows]
        )

    __repr__ = __str__


@checked
@undisturbed()
def check(
    problem: Problem, regularizer: AnyRegularizer = "squared_norm", *, seed: int = 0
) -> Check:
    """Look at everything that a walk relies on, at the model's present weights.

    The gradients of the training loss and the regularizer are compared with central differences of
    their values in float64, the loss is evaluated again and in another order, its noise, time and
    memory are measured. Costs some forty evaluations.

    Args:
        problem: The training loss.
        regularizer: As for `traverse`.
        seed: Of the directions along which gradients are compared.

    Returns:
        The findings; `print` them, or ask `passed`.

    Raises:
        InputError: The regularizer is none.
    """
    whole("seed", seed)
    theta = problem.current()
    rows = [*_made_with(problem), *_start(problem, theta)]
    function = _function(problem, theta)
    rows.append(function)
    if function.status == OK and all(row.status != FAILED for row in rows):
        judge = in_float64(problem, theta, _judge) or problem
        rows += _loss_gradient(problem, judge, theta, seed)
        rows += _regularizer_gradient(regularizer, problem, judge, theta, seed)
        if get_regularizer(regularizer, problem).name == "squared_norm":
            rows += _batch_norms(problem)
        rows.append(_noise(problem, theta))
    rows += _costs(problem, theta, rows)
    reason = unrecorded(problem)
    if reason is not None:
        rows.append(Finding("kernels", f"launched one by one: {reason}" if reason else "recorded"))
    return Check(tuple(rows))


def _made_with(problem: Problem) -> list[Finding]:
    model = inside(problem).network.model
    name = type(model).__name__ if isinstance(model, nn.Module) else "function"
    ranks = inside(problem).ranks.count
    shares = f" in {ranks} shares" * (ranks > 1)
    size = f"{name}, {problem.size:,} parameters, {_examples(problem):,} examples{shares}"
    kind = str(problem.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    where = f"{kind} on {problem.device}, {threads} thread{'s' * (threads > 1)}"
    versions = (
        f"isoloss {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    return [Finding("problem", f"{size}, {where}"), Finding("made with", versions)]


def _start(problem: Problem, theta: Tensor) -> list[Finding]:
    try:
        loss, grad = problem.loss_and_grad(theta)
    except IsolossError as error:
        return [Finding("training loss L", str(error), FAILED)]
    size = grad.norm().item()
    good = math.isfinite(loss.item()) and 0 < size < math.inf
    found = f"{loss.item():.6g}, gradient of norm {size:.4g}"
    if good and loss.item() <= 0:
        found += "; to be held by atol=, since it is not positive"
    if not good:
        found += "; both must be finite, the gradient not zero"
        infinite = "" if math.isfinite(loss.item()) else inside(problem).chunks.infinite
        found += f", and {infinite}" if infinite else ""
    return [Finding("training loss L", found, OK if good else FAILED)]


def _function(problem: Problem, theta: Tensor) -> Finding:
    try:
        check_function(problem, theta)
    except IsolossError as error:
        return Finding("L is a function", str(error), FAILED)
    value, grad = problem.loss_and_grad(theta)
    again, grad_again = problem.loss_and_grad(theta)
    if value == again and torch.equal(grad, grad_again):
        return Finding("L is a function", "the same bits twice, and in another order", OK)
    change = ((grad - grad_again).norm() / grad.norm()).item()
    return Finding(
        "L is a function", f"the same loss twice; the gradient repeats to {change:.1e}", OK
    )


def _judge(exact: Problem, theta: Tensor) -> Problem:
    """The problem in float64, once its gradient was computed."""
    exact.loss_and_grad(theta)
    return exact


def _loss_gradient(problem: Problem, judge: Problem, theta: Tensor, seed: int) -> list[Finding]:
    x = theta.to(judge.dtype)
    grad = judge.loss_and_grad(x)[1]
    held = inside(judge).held

    def loss(at: Tensor) -> Tensor:
        return judge.loss(at if held is None else torch.where(held, x, at))

    noise, allowed = relative_noise(judge, x), RIGHT[x.dtype]
    if is_coarse(judge, x):
        noise, allowed = torch.finfo(x.dtype).eps, allowed_coarsely(loss(x).item(), x, grad)
    row = _gradient("gradient of L", loss, x, grad, judge, noise, seed, allowed)
    rows = [row]
    if judge is not problem:
        own = problem.loss_and_grad(theta)[1].double()
        error = ((own - grad).norm() / grad.norm()).item()
        same = OK if error < SAME_GRADIENT[problem.precision] else FAILED
        rounded = "" if problem.precision == "exact" else f", rounded to {problem.precision}"
        found = f"{error:.1e} from that in float64{rounded}"
        rows.append(Finding("gradient in float32", found, same))
    if row.status == OK:
        rows.append(_hessian(judge, x, seed))
    return rows


def _gradient(
    what: str,
    value: Callable[[Tensor], Tensor],
    x: Tensor,
    grad: Tensor,
    problem: Problem,
    noise: float,
    seed: int,
    allowed: float,
) -> Finding:
    """Whether a gradient is that of the values."""
    layout = Layout(problem.shapes)
    wrong = wrong_gradient(value, x, grad, layout, allowed, noise=noise, seed=seed)
    if wrong is None:
        return Finding(what, f"agrees with differences of the values to {allowed:.0e}", OK)
    error, names = wrong
    text = f"relative error along a direction {error:.1e}: it is not the gradient of the values"
    text += f", wrong in {', '.join(names[:5])}" if names else ""
    return Finding(
        what, f"{text}; look for detach, no_grad, .data or a backward of your own", FAILED
    )


def _hessian(problem: Problem, x: Tensor, seed: int) -> Finding:
    v = inside(problem).walked(random_direction(x, seed))
    try:
        product = problem.hvp(x, v)
    except (IsolossError, RuntimeError) as error:
        said = error if isinstance(error, IsolossError) else one_line(error)
        return Finding("Hessian of L", f"not available: {said}")
    error = mismatch(lambda at: problem.loss_and_grad(at)[1], product, x, v)
    note = "" if error < SAME_HESSIAN else " (kinks such as ReLU's do this, or a wrong backward)"
    return Finding("Hessian of L", f"{error:.1e} from differences of the gradient{note}")


def _regularizer_gradient(
    regularizer: AnyRegularizer, problem: Problem, judge: Problem, theta: Tensor, seed: int
) -> list[Finding]:
    made, x = get_regularizer(regularizer, problem), theta.to(judge.dtype)
    try:
        try:
            made = get_regularizer(regularizer, judge)
            value, grad = made.value_and_grad(x)
        except (IsolossError, RuntimeError):  # a regularizer that computes in float32 alone
            if judge is problem:
                raise
            judge, x = problem, theta
            made = get_regularizer(regularizer, problem)
            value, grad = made.value_and_grad(x)
    except IsolossError as error:
        return [Finding("regularizer R", str(error), FAILED)]
    what = f"regularizer R, {made.name}"
    if not math.isfinite(value.item() + grad.norm().item()):
        found = f"{value.item():g}, gradient of norm {grad.norm().item():g}; both must be finite"
        return [Finding(what, found, FAILED)]
    eps = torch.finfo(x.dtype).eps
    return [
        Finding(what, f"{value.item():.6g}, gradient of norm {grad.norm().item():.4g}", OK),
        _gradient(
            "gradient of R",
            lambda at: made.value_and_grad(at)[0],
            x,
            grad,
            judge,
            eps,
            seed,
            RIGHT[x.dtype],
        ),
    ]


def _batch_norms(problem: Problem) -> list[Finding]:
    """What a small norm does to their scales, each a factor of the weights before it."""
    model = inside(problem).network.model
    parts = model.modules() if isinstance(model, nn.Module) else ()
    scales = [part.weight for part in parts if isinstance(part, _BatchNorm) and part.affine]
    channels = sum(len(scale) for scale in scales if scale.requires_grad)
    if not channels:
        return []
    found = f"{channels:,} scales, which a walk to a small R may take to 0: fuse them before it"
    return [Finding("batch norm", found)]


def _noise(problem: Problem, theta: Tensor) -> Finding:
    noise, loss = relative_noise(problem, theta), problem.loss(theta).item()
    if loss <= 0:
        return Finding(
            "noise of L", f"{noise:.1e} of L; atol must be larger than {noise * -loss:.1e}"
        )
    found = f"{noise:.1e} of L; rtol must be larger (usual: {USUAL_RTOL:g})"
    if noise >= USUAL_RTOL:
        return Finding("noise of L", f"{found}; use dtype=torch.float64", FAILED)
    return Finding("noise of L", found, OK)


def _costs(problem: Problem, theta: Tensor, above: Sequence[Finding]) -> list[Finding]:
    found: list[Finding] = []
    for what, text in (("speed", _speed), ("memory", _memory)):
        try:
            row = Finding(what, text(problem, theta))
        except (IsolossError, RuntimeError) as error:
            own = isinstance(error, IsolossError)
            why = str(error) if own else said(error)
            if any(why in row.found for row in (*above, *found)):
                row = Finding(what, "not measured, for the reason above")
            else:  # of a walk, an evaluation would fail as well; of counting bytes, nothing
                row = Finding(what, f"not measured: {why}", FAILED if own else NOTE)
        found.append(row)
    return found


def _speed(problem: Problem, theta: Tensor) -> str:
    seconds = _seconds_per_evaluation(problem, theta)
    rates = _rate(1 / seconds), _rate(_examples(problem) / seconds)
    return f"{rates[0]} evaluations a second, {rates[1]} examples a second"


def _memory(problem: Problem, theta: Tensor) -> str:
    activations = activation_bytes(problem)
    vector = problem.size * theta.element_size()
    points = (Record().points_at_most or 0) * vector
    walk = vectors_at_most(problem, SQP(), exact=True) * vector + points
    return (
        f"some {size_text(activations + 2 * vector)} for a chunk and its gradient, "
        f"{size_text(data_bytes(problem))} for data; a walk by sqp up to {size_text(walk)}, of it "
        f"{size_text(points)} for the points kept"
    )


def _examples(problem: Problem) -> int:
    """Of all ranks."""
    return int(inside(problem).ranks.total(lambda: [problem.examples])[0])


def _rate(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _seconds_per_evaluation(problem: Problem, theta: Tensor) -> float:
    """Wall-clock seconds of an evaluation of loss and gradient: the least of three or more."""
    taken: list[float] = []
    clock = inside(problem).ranks.clock
    while len(taken) < 3 or (sum(taken) < 0.3 and len(taken) < 50):
        began = clock()
        problem.loss_and_grad(theta)[0].item()
        taken.append(clock() - began)
    return min(taken)


def activation_bytes(problem: Problem) -> int:
    """Bytes that autograd keeps for the gradient of the largest chunk."""
    own = inside(problem)
    chunk = max(own.chunks, key=lambda chunk: chunk.examples)
    given = [*own.network.leaves, *(tensor for _, tensor in leaves(list(chunk[:2]), ""))]
    with torch.enable_grad():
        kept = saved_bytes(lambda: own.autograd.forward(chunk))
    for tensor in given:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def data_bytes(problem: Problem) -> int:
    """Bytes of the training set that stay in memory: all of it, or one batch of a stream."""
    chunks = inside(problem).chunks
    sizes = [sum(t.nbytes for _, t in leaves(list(chunk[:2]), "")) for chunk in chunks]
    return sum(sizes) if chunks.kept else max(sizes)
