"""Derivatives of derivatives, where a model brings a backward of its own: are they right?

Torch differentiates its own operations again or says that it cannot. Through a
`torch.autograd.Function` whose backward is `once_differentiable`, or leaves torch with `.detach()`
or NumPy, it goes on without a word, and what lies behind is missing from the result. So where there
is one, the result is compared with finite differences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from isoloss.errors import DerivativeError

STEPS = {torch.float64: (1e-4, 1e-5, 1e-6, 1e-7), torch.float32: (3e-2, 1e-2, 3e-3, 1e-3)}
"""Lengths of the steps, as shares of |theta|; the one that agrees best counts."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 0.05}
ROUNDINGS = 100


def own_functions(total: Tensor) -> list[str]:
    """Names of the backward functions in a graph that are not torch's own operations.

    Args:
        total: What was computed.

    Returns:
        Names of classes derived from `torch.autograd.Function`, and of those written in C++.
    """
    names: dict[str, None] = {}
    seen: set[object] = set()
    left = [total.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        elif "CppNode" in node.name():
            names[node.name()] = None
        left += [before for before, _ in node.next_functions]
    return sorted(names)


def undifferentiable(error: RuntimeError) -> bool:
    """Whether torch says that an operation cannot be differentiated again."""
    said = str(error)
    return any(word in said for word in ("derivative", "double backward", "differentiate twice"))


def random_direction(theta: Tensor) -> Tensor:
    """A vector of random normal numbers, always the same, like theta."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(len(theta), generator=source, dtype=torch.float64).to(theta)


def check_slope(
    function: Callable[[Tensor], Tensor],
    slope: Tensor,
    theta: Tensor,
    direction: Tensor,
    what: str,
    names: list[str],
) -> None:
    """Insist that the derivative of a function along a direction is that of its values.

    Args:
        function: Of theta; a number or a vector.
        slope: Its derivative along the direction, to be checked.
        theta: Where, shape (n,).
        direction: Shape (n,), of any length.
        what: What is derived, for the text.
        names: Functions of the user's that may be why it is wrong.

    Raises:
        DerivativeError: It is not.
    """
    here, eps = function(theta).norm(), torch.finfo(theta.dtype).eps
    size = theta.norm().item() or 1.0
    wrong: list[float] = []
    for share in STEPS[theta.dtype]:
        h = share * size / direction.norm().item()
        ahead, behind = function(theta + h * direction), function(theta - h * direction)
        differences = (ahead - behind) / (2 * h)
        largest = max(slope.norm().item(), differences.norm().item())
        rounding = ROUNDINGS * eps * here.item() / h
        error = (slope - differences).norm().item()
        if error <= TOLERANCE[theta.dtype] * largest + rounding:
            return
        wrong.append(error / largest)
    raise DerivativeError(
        f"{what} would be off by {min(wrong):.1%}, since the backward of {', '.join(names)} cannot "
        f"be differentiated (once_differentiable, detach, no_grad or NumPy in it); write that "
        f"backward in torch operations on ctx.saved_tensors"
    )
