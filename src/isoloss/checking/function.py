"""Whether the loss is a function of the parameters alone, and how exactly it is known.

Costs three passes over the data without gradients and two over a few examples.
"""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from isoloss.checking.estimates import warn_of_estimates
from isoloss.checking.exact import in_float64
from isoloss.checking.leftovers import check_fresh, check_inputs, versions
from isoloss.checking.words import listed, named
from isoloss.data import Chunk, leaves, random_state_kept
from isoloss.errors import InputError, one_line
from isoloss.evaluation.autograd import differentiable
from isoloss.evaluation.differences import leaves_of
from isoloss.flat import fixed, reached, same
from isoloss.point import Tolerance
from isoloss.problem import Problem, alone, inside

LEAST_ROUNDINGS, MOST_APART = 100, 1e-2
"""Losses of an example in two chunks may differ by a tenth of the tolerance, at least by so many
roundings of the mean loss and at most by this share of it."""

FEW = 4
"""Examples that are enough to see what the loss depends on."""

USUAL = Tolerance()

NO_FUNCTION = "the loss is not a function of the parameters alone"


def check_function(problem: Problem, theta: Tensor, tolerance: Tolerance = USUAL) -> None:
    """Insist on the same losses in two evaluations, and of a few examples in another order."""
    with alone(problem), inside(problem).ranks.together(), random_state_kept():
        _check_batch_norm(problem)
        warn_of_estimates(problem)
        inputs = versions(problem)
        first = _losses(problem, theta)
        check_inputs(inputs)
        _check_place(problem, theta)
        held = {name: t.clone() for name, t in fixed(inside(problem).network.model).items()}
        second = _losses(problem, theta)
        _check_buffers(problem, held)
        if not same(first, second):
            _refuse_random(problem, first, second)
        _check_order(problem, first, tolerance, theta)
        _check_dependence(problem, theta)
        check_fresh(problem, theta)


def _check_place(problem: Problem, theta: Tensor) -> None:
    """Insist that an evaluation leaves the parameters where they were."""
    network = inside(problem).network
    places = zip(problem.shapes, network.leaves, network.layout.split(theta), strict=True)
    moved = [name for name, now, before in places if not same(now.detach(), before)]
    if moved:
        raise InputError(
            f"{NO_FUNCTION}: an evaluation changes the parameter {listed(moved)} itself, as "
            f"nn.Embedding(max_norm=...) does; take that out, or renormalize in training alone"
        )


def _check_dependence(problem: Problem, theta: Tensor) -> None:
    own = inside(problem)
    own.network.load(theta)
    few = next(iter(own.chunks)).first(FEW)

    def met_in_one() -> list[Tensor]:
        with torch.enable_grad():
            total = differentiable(own.autograd.total(few))
        return [leaf for leaf in leaves_of(total) if leaf.requires_grad]

    ours = {id(leaf) for leaf in [*own.network.leaves, *(t for _, t in leaves(few[:2], ""))]}
    met = met_in_one()
    if any(id(leaf) not in ours for leaf in met):  # or made by the loss, to differentiate by inputs
        again = {id(leaf) for leaf in met_in_one()}
        met = [leaf for leaf in met if id(leaf) in again]
    given = {id(parameter): name for name, parameter in own.given.items()}
    for leaf in met:
        if id(leaf) in given:
            raise reached(given[id(leaf)])
        if id(leaf) not in ours:
            raise InputError(
                f"the loss is computed with a tensor of shape {tuple(leaf.shape)} that requires a "
                f"gradient and is none of the problem's parameters, so that it would be constant "
                f"along the walk; if that is meant, give it without: tensor.requires_grad_(False)"
            )
    if not met:
        raise InputError(
            f"the loss depends on none of the {problem.size} parameters of the model: its forward "
            f"computes with other tensors, for example those of the model it was copied from; "
            f"write forward as a method that uses self"
        )


def _check_batch_norm(problem: Problem) -> None:
    model = inside(problem).network.model
    if not isinstance(model, nn.Module):
        return
    norms = [(k, m) for k, m in model.named_modules() if isinstance(m, _BatchNorm)]
    averaging = [named(k, m) for k, m in norms if m.training]
    if averaging:
        raise InputError(
            f"{NO_FUNCTION}, since batch statistics go into it: in training mode are "
            f"{listed(averaging)}; call model.eval()"
        )
    without = [named(k, m) for k, m in norms if m.running_mean is None]
    if without:
        raise InputError(
            f"{NO_FUNCTION}, since batch statistics go into it: {listed(without)} keep no running "
            f"statistics; make them with track_running_stats=True and train again"
        )


def _check_buffers(problem: Problem, before: dict[str, Tensor]) -> None:
    model = inside(problem).network.model
    after = fixed(model)
    changed = [k for k, old in before.items() if k not in after or not same(old, after[k])]
    if changed:
        modules = dict(model.named_modules())  # pyright: ignore
        owner = changed[0].rpartition(".")[0]
        raise InputError(
            f"{NO_FUNCTION}: an evaluation changes {listed([repr(k) for k in changed])} of "
            f"{named(owner, modules.get(owner))}; call model.eval(), or do not write to it in "
            f"forward"
        )


def _refuse_random(problem: Problem, first: Tensor, second: Tensor) -> None:
    start = (
        f"{NO_FUNCTION}: two evaluations at one point gave {first.mean().item():.9g} and "
        f"{second.mean().item():.9g}"
    )
    for chunk in inside(problem).chunks:
        random = changing(problem, chunk)
        if random:
            raise InputError(
                f"{start}, since the outputs of {listed(random)} are random; call model.eval() or "
                f"remove what is random there"
            )
    raise InputError(f"{start}; remove what is random in the loss function")


def _check_order(problem: Problem, losses: Tensor, tolerance: Tolerance, theta: Tensor) -> None:
    start, own = 0, inside(problem)
    for chunk in own.chunks:
        if chunk.examples > 1 and not chunk.whole:
            break
        start += chunk.examples
    else:
        return
    n = chunk.examples
    losses = losses[start : start + n]
    rows = torch.arange(n - 1, max(n - 4, 0), -1, device=losses.device)
    few = chunk.take(rows)
    try:
        alone = own.autograd.losses(own.autograd.detached(few), few).detach().double()
    except (RuntimeError, InputError) as error:
        raise InputError(
            f"{NO_FUNCTION}: a chunk of {len(rows)} of its examples cannot be evaluated "
            f"({one_line(error)}); if examples belong together, give them as one: inputs[None]"
        ) from error
    eps = torch.finfo(problem.dtype).eps
    together, mean = losses[rows], losses.abs().mean()
    asked = tolerance.relative(mean.item())
    relative = max(LEAST_ROUNDINGS * eps, min(MOST_APART, 0.1 * asked))
    far = (together - alone).abs() > relative * (mean + together.abs())
    if not far.any():
        return
    exact = in_float64(problem, theta, lambda judge, x: (judge, _losses(judge, x)))
    if exact is not None:  # where rounding cannot be what sets them apart
        _check_order(*exact, tolerance, theta.double())
        return
    k = int(far.nonzero()[0])
    modules = mixing(problem, chunk, few, rows, relative)
    where = f", which begins in {modules[0]}" if modules else ""
    which = own.chunks.number(start + int(rows[k]))
    one, two = _apart(together[k].item(), alone[k].item())
    raise InputError(
        f"{NO_FUNCTION}: example {which} has the loss {one} in its chunk and {two} among "
        f"others{where}; look for batch statistics or a wrong axis of the examples (batch_first), "
        f"or give what belongs together as one example, or its loss as one number, by a function "
        f"of (model, batch)"
    )


def _apart(one: float, two: float) -> tuple[str, str]:
    """Two different numbers with digits enough to be told apart."""
    shown = ((f"{one:.{digits}g}", f"{two:.{digits}g}") for digits in (6, 9, 12, 17))
    return next(pair for pair in shown if pair[0] != pair[1])


def relative_noise(problem: Problem, theta: Tensor) -> float:
    """Relative rounding error of the loss at a point, in the problem's own type."""
    ranks = inside(problem).ranks
    with ranks.together():
        losses, rounded = _weighted(problem, theta), is_coarse(problem, theta)
    (total,) = ranks.total(lambda: [losses.sum().item()])
    if total == 0:
        return math.inf
    eps = torch.finfo(torch.float32 if rounded else problem.dtype).eps
    if problem.dtype == torch.float32:
        exact = in_float64(problem, theta, _exactly)
        off = torch.zeros(1, dtype=torch.float64, device="cpu") if exact is None else losses - exact
        failed, drift, squares = ranks.total(
            lambda: [exact is None, off.sum().item(), off.square().sum().item()]
        )
        # the sum's own error; were those of the examples independent, the root of their squares
        return eps if failed else max(abs(drift), math.sqrt(squares)) / abs(total)
    forth, back = losses.cumsum(0)[-1], losses.flip(0).cumsum(0)[-1]
    (apart,) = ranks.total(lambda: [(forth - back).abs().item()])
    return max(eps, apart / abs(total))


def is_coarse(problem: Problem, theta: Tensor) -> bool:
    """Whether losses are rounded to a coarser type than the problem's."""
    with alone(problem):
        return inside(problem).autograd.coarse(theta)


def _exactly(problem: Problem, theta: Tensor) -> Tensor | None:
    """The weighted losses, unless they are rounded."""
    return None if is_coarse(problem, theta) else _weighted(problem, theta)


def _losses(problem: Problem, theta: Tensor) -> Tensor:
    """The losses of the examples that count."""
    losses, numbers = problem.example_losses(theta), inside(problem).chunks.numbers
    return losses if numbers is None else losses[numbers]


def _weighted(problem: Problem, theta: Tensor) -> Tensor:
    losses, weights = _losses(problem, theta), inside(problem).chunks.weights
    return losses if weights is None else losses * weights


def check_tolerance(problem: Problem, theta: Tensor, tolerance: Tolerance, level: float) -> None:
    """Insist that a tolerance of the level means something at a point."""
    noise, asked = relative_noise(problem, theta), tolerance.relative(level)
    if asked < noise:
        better = " or use dtype=torch.float64" if problem.dtype == torch.float32 else ""
        raise InputError(
            f"a relative tolerance of {asked:.3g} is below the noise of the loss, {noise:.2g} "
            f"in {str(problem.dtype).removeprefix('torch.')}; allow more than that{better}"
        )


# ---------------------------------------------------------------- which module it is


class Call(NamedTuple):
    """One call of a module."""

    name: str  # of the module, for people
    path: str  # of the module within the model
    inputs: list[Tensor]
    outputs: list[Tensor]


def changing(problem: Problem, chunk: Chunk) -> list[str]:
    """The modules whose outputs differ between two evaluations of a chunk."""
    model = inside(problem).network.model
    calls, again = (_calls(problem, chunk) for _ in range(2))
    random = [
        one
        for one, two in zip(calls, again, strict=False)
        if one.path == two.path
        and _equal(one.inputs, two.inputs)
        and not _equal(one.outputs, two.outputs)
    ]
    innermost = _innermost(random)
    if not innermost or not isinstance(model, nn.Module):
        return innermost
    dropping = [
        named(path, module)
        for path, module in model.named_modules()
        if module.training and isinstance(module, _DropoutNd) and module.p > 0
    ]
    return list(dict.fromkeys([*innermost, *dropping]))


def mixing(problem: Problem, chunk: Chunk, few: Chunk, rows: Tensor, relative: float) -> list[str]:
    """The modules whose outputs for an example depend on the examples beside it."""

    def agree(whole: list[Tensor], part: list[Tensor]) -> bool | None:
        known = None
        for a, b in zip(whole, part, strict=False):
            if a.shape[:1] != (chunk.examples,) or b.shape[:1] != (few.examples,):
                continue
            a = a[rows]
            if a.shape != b.shape:
                return False
            if bool(((a - b).abs() > relative * a.abs().max()).any()):
                return False
            known = True
        return known

    together, alone = _calls(problem, chunk), _calls(problem, few)
    return _innermost(
        [
            one
            for one, two in zip(together, alone, strict=False)
            if agree(one.inputs, two.inputs) is True and agree(one.outputs, two.outputs) is False
        ]
    )


def _innermost(calls: list[Call]) -> list[str]:
    """Names of the modules called, without those that only contain another of them."""
    paths = {call.path for call in calls}
    return list(
        dict.fromkeys(
            call.name
            for call in calls
            if not any(
                other != call.path and (other.startswith(f"{call.path}.") or call.path == "")
                for other in paths
            )
        )
    )


def _calls(problem: Problem, chunk: Chunk) -> list[Call]:
    network, forward = inside(problem).network, inside(problem).autograd.forward
    calls: list[Call] = []

    def note(path: str, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        given = _tensors([args, kwargs])
        calls.append(Call(named(path, module), path, given, _tensors(outputs)))

    if not isinstance(network.model, nn.Module):
        with torch.no_grad():
            outputs = forward(chunk)
        return [Call("the model function", "", [], _tensors(outputs))]
    with torch.no_grad(), ExitStack() as hooks:
        for path, module in network.model.named_modules():
            hook = functools.partial(note, path)
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        forward(chunk)
    return calls


def _tensors(tree: Any) -> list[Tensor]:
    return [tensor.detach().clone() for _, tensor in leaves(tree, "")]


def _equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(same, one, two))
