"""Whether a derivative belongs to the values: central differences over steps of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from isoloss.flat import Layout

STEPS = {
    torch.float64: (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
    torch.float32: (1e-1, 3e-2, 1e-2, 3e-3, 1e-3),
}
"""Lengths of the steps, as shares of |x|; the one that agrees best counts, since long steps cross
kinks and curvature, and short ones are all rounding. A network of 10^5 ReLUs has kinks everywhere:
there the step of 1e-7 is off by up to 1e-3, that of 1e-9 by 1e-4 at most."""
TRUSTED = 1e-7
"""Length from which on a difference that rounding explains says that there is no slope."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 0.05}
"""Largest relative mismatch of a right derivative of a gradient."""
RIGHT = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Largest relative mismatch of a right gradient of a smooth function."""
CLEARLY = {torch.float64: 1e-3, torch.float32: 0.1}
"""The same where a part of the function may be computed in a coarser type."""
OPPOSED = 0.5
"""Length of the sum of two unit vectors that are nearly opposite, as one parameter's may be."""
ROUNDINGS = 100
"""Rounding errors of the function that a difference may be off by."""


def mismatch(
    function: Callable[[Tensor], Tensor],
    slope: Tensor,
    x: Tensor,
    direction: Tensor,
    *,
    noise: float | None = None,
    enough: float = 0.0,
) -> float:
    """Relative difference of a claimed derivative along a direction from central differences;
    0 where rounding explains it, `noise` being the function's, NaN where nothing is finite. No
    further step is tried once one agrees to `enough`."""
    noise = torch.finfo(x.dtype).eps if noise is None else noise
    size = x.double().norm().item() or 1.0
    here = function(x).double().norm().item()
    claimed, best = slope.double(), float("nan")
    for share in STEPS[x.dtype]:
        h = share * size / direction.double().norm().item()
        ahead, behind = (
            function((x.double() + s * h * direction.double()).to(x.dtype)) for s in (1, -1)
        )
        differences = (ahead.double() - behind.double()) / (2 * h)
        scale = max(claimed.norm().item(), differences.norm().item())
        error = (claimed - differences).norm().item()
        rounding = ROUNDINGS * noise * here / h
        none = share >= TRUSTED and error <= rounding and scale <= 2 * rounding
        found = 0.0 if none else error / (scale or 1.0)
        best = found if best != best or found < best else best
        if best <= enough:
            break
    return best


def random_direction(x: Tensor, seed: int = 0) -> Tensor:
    """A vector of random normal numbers, always the same, like x."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(len(x), generator=source, dtype=torch.float64, device="cpu").to(x)


def wrong_gradient(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    grad: Tensor,
    layout: Layout,
    allowed: float,
    *,
    noise: float | None = None,
    seed: int = 0,
) -> tuple[float, list[str]] | None:
    """The mismatch of a wrong gradient, and the parameters it is wrong in, at least the worst; None
    for a right one. Along one direction, half the gradient's and half random."""
    v, size = random_direction(x, seed), grad.double().norm()
    if size > 0:
        random, slope = v.double() / v.double().norm(), grad.double() / size
        both = slope + random
        v = (both if both.norm() > OPPOSED else slope - random).to(x)
    error = mismatch(function, grad.double().dot(v.double()), x, v, noise=noise, enough=allowed)
    if error <= allowed:
        return None
    each: dict[str, float] = {}
    for name in layout.shapes if error == error else ():
        v = torch.zeros_like(x)
        mine = layout.named(v)[name]
        mine += random_direction(mine.reshape(-1), 1).view(mine.shape) + layout.named(grad)[name]
        claimed = grad.double().dot(v.double())
        each[name] = mismatch(function, claimed, x, v, noise=noise)
    names = [name for name, found in each.items() if not found <= 10 * allowed]
    return error, names or sorted(each, key=each.__getitem__)[-1:]


def allowed_coarsely(loss: float, x: Tensor, grad: Tensor) -> float:
    """Largest mismatch of a right gradient of a loss in float64 that was rounded to float32: what
    the rounding does to its difference over the longest step, if that is more than usual."""
    change = STEPS[x.dtype][0] * (x.norm() * grad.norm()).item()
    rounding = 4 * torch.finfo(torch.float32).eps * abs(loss)
    return max(RIGHT[torch.float32], rounding / change if change else 0.0)


def leaves_of(total: Tensor) -> list[Tensor]:
    """The tensors that a graph ends in and that require a gradient."""
    found = (getattr(node, "variable", None) for node in _nodes(total))
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def own_functions(total: Tensor) -> list[str]:
    """Names of the backward functions in a graph that are not torch's own operations; through those
    torch differentiates again without a word, even where they detach and the result is wrong."""
    names: dict[str, None] = {}
    for node in _nodes(total):
        if isinstance(node, BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        elif "CppNode" in node.name():
            names[node.name()] = None
    return sorted(names)


def _nodes(total: Tensor) -> Iterator[Any]:
    """The nodes of a graph, each once."""
    seen: set[object] = set()
    left = [total.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
            yield node
