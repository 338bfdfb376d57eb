"""A plain `nn.Sequential` as a chain of layers that is differentiated by hand.

The same arithmetic into buffers that are kept; autograd's bookkeeping costs a third of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from isoloss._kernels.images import average_pool, convolution
from isoloss._kernels.layers import Flatten, Layer, Linear, Part, Place, ReLU, Tanh, Tensors
from isoloss.losses import Loss, NamedLoss, cross_entropy, mse

LAYERS: dict[type[nn.Module], Callable[[Place], Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: convolution,
    nn.Tanh: Tanh,
    nn.ReLU: ReLU,
    nn.AvgPool2d: average_pool,
    nn.Flatten: Flatten,
}
"""What stands in for each module."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SHADOWS = {"forward", "weight", "bias"}
"""Attributes that, set on a module itself, act instead of its class's method or its parameter."""

WITH_PARAMETERS = (nn.Linear, nn.Conv2d)
OVERWRITABLE = (nn.Linear, nn.Conv2d, nn.AvgPool2d)
"""Layers whose outputs an activation may overwrite: they need them no more."""

DENSE = (nn.Linear, nn.Tanh, nn.ReLU, nn.Flatten)


class Chain:
    """The layers of a network, or of many at once along a leading axis, with buffers for batches of
    one shape; for one thread at a time. Of the parameters only the shapes matter here."""

    def __init__(
        self, parts: Sequence[Part], at: Tensors, shape: tuple[int, ...], *, exact: bool
    ) -> None:
        kernel = next(part for part in parts if part.weight >= 0)
        stacked = at[kernel.weight].ndim > kernel.module.weight.ndim
        kinds = [type(part.module) for part in parts]
        self._layers: list[Layer] = []
        first = True
        for k, part in enumerate(parts):
            paired = [nn.Linear, nn.Tanh] in (kinds[k : k + 2], kinds[max(0, k - 1) : k + 1])
            place = Place(part, at, shape, first, stacked, exact, paired and not exact)
            self._layers.append(LAYERS[kinds[k]](place))
            first = first and part.weight < 0
            shape = self._layers[-1].shape
        self.shape = shape  # of the outputs
        self.flops = sum(layer.flops for layer in self._layers)  # forward and backward
        self.room = sum(layer.room for layer in self._layers)  # numbers in its buffers

    def outputs(self, at: Tensors, inputs: Tensor) -> Tensor:
        """Outputs of the network; the next call overwrites them."""
        for layer in self._layers:
            inputs = layer.forward(inputs, at)
        return inputs

    def gradient(self, at: Tensors, slope: Tensor, into: Tensors, add: bool = False) -> None:
        """Write, or add, the gradient of a function of the last outputs into a tensor a parameter;
        `slope`, that by the outputs, is overwritten."""
        back: Tensor | None = slope
        for layer in reversed(self._layers):
            if back is None:
                break
            back = layer.backward(back, at, into, add)


def plain(model: object) -> list[Part] | None:
    """The layers of a model that a `Chain` can stand in for, else None: all trainable, of one type,
    no buffers or hooks, nothing shared, activations after what does not need its outputs again."""
    if not isinstance(model, nn.Module) or next(model.buffers(), None) is not None:
        return None
    if any(getattr(torch_module, f"_global{name}") for name in HOOKS):  # of all modules
        return None
    named = dict(model.named_parameters())  # in the order of the flat vector, shared ones once
    places = {name: k for k, name in enumerate(named)}
    parts: list[Part] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is nn.Sequential and bare(module):
            continue
        prefix = f"{name}." if name else ""
        own = [places.get(prefix + key, -1) for key in ("weight", "bias")]
        if not _admitted(module) or (isinstance(module, WITH_PARAMETERS) and -1 in own):
            return None
        before = parts[-1].module if parts else None
        if isinstance(module, (nn.Tanh, nn.ReLU)) and not isinstance(before, OVERWRITABLE):
            return None
        parts.append(Part(module, *own))
    used = [k for part in parts for k in (part.weight, part.bias) if k >= 0]
    fit = sorted(used) == list(range(len(named))) and all(p.requires_grad for p in named.values())
    types = {p.dtype for p in named.values()}
    return parts if fit and types in ({torch.float32}, {torch.float64}) else None


def dense(parts: Sequence[Part]) -> bool:
    """Whether all layers with parameters are dense ones."""
    return all(isinstance(part.module, DENSE) for part in parts)


@functools.cache
def keep_freed_memory() -> None:
    """Let large blocks be used again: glibc keeps freed ones up to the largest freed so far, though
    never 32 MiB (mallopt(3), M_MMAP_THRESHOLD), so one of nearly that is taken and freed."""
    torch.empty(32 * 2**20 - 2**16, dtype=torch.uint8, device="cpu")


def overruns(conv: nn.Conv2d) -> bool:
    """Whether torch (2.13, CPU), channels last, writes past the end of memory in its gradient, as
    seen with up to 15 channels in several threads."""
    channels, *kernel = conv.weight.shape[1:]
    return max(kernel) == 1 and max(conv.stride) > 1 and channels < 16


def bare(module: nn.Module) -> bool:
    own = vars(module)
    return not SHADOWS & own.keys() and not any(own.get(hooks) for hooks in HOOKS)


def _admitted(module: Any) -> bool:
    if type(module) not in LAYERS or not bare(module) or next(module.children(), None) is not None:
        return False
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    if not isinstance(module, WITH_PARAMETERS):
        return True
    own = dict(module.named_parameters())
    if own.keys() != {"weight", "bias"}:
        return False
    weight, bias = own["weight"], own["bias"]
    usual = weight.ndim == (4 if isinstance(module, nn.Conv2d) else 2) and weight.numel() > 0
    if not usual or bias.shape != weight.shape[:1]:
        return False
    if isinstance(module, nn.Conv2d):
        whole = module.groups == 1 and module.dilation == (1, 1)
        padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return whole and padded and not overruns(module)
    return True


# ---------------------------------------------------------------- the loss at the outputs

Head = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From outputs to their part of the mean loss, shape (), float64, and its slope, a new tensor of
their shape and type."""

Slope = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of one network, or of many along a leading axis, to the slope of each
one's mean loss."""


def head_of(
    loss: Loss, shape: tuple[int, ...], targets: Any, dtype: torch.dtype, weight: float
) -> Head | None:
    """The head of the two losses of the paper, for which autograd takes five times as long, or
    None; `weight` is that of each example in the mean."""
    form = _form(loss, shape[1:], targets, dtype, 1)
    if form is mse:
        return _mse(targets, weight)
    # in float64 the loss takes more care to keep its digits near zero than is taken here
    return _cross_entropy(targets, weight) if form and dtype == torch.float32 else None


def slope_of(
    loss: Loss, shape: tuple[int, ...], targets: Tensor, dtype: torch.dtype, stacked: bool
) -> Slope:
    """The slope without the loss, in closed form for the same two, else by autograd. `targets` and,
    if `stacked`, what the slope takes have a leading axis of members; `shape` is an example's."""
    form = _form(loss, shape, targets, dtype, 2)
    axis = 1 if stacked else 0  # the examples'

    def of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
        slope = torch.softmax(outputs, -1, dtype=torch.float64)
        index = targets.unsqueeze(-1)
        slope.scatter_add_(-1, index, slope.new_full((), -1.0).expand_as(index))
        return slope.div_(outputs.shape[axis]).to(outputs.dtype)

    def of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).mul_(2 / outputs.shape[axis:].numel())

    def automatic(outputs: Tensor, targets: Tensor) -> Tensor:
        flat = targets.flatten(0, axis)
        _, slope = differentiated(lambda z: loss(z.flatten(0, axis), flat).sum(), outputs)
        return slope.div_(outputs.shape[axis])

    if form is None:
        return automatic
    return of_squares if form is mse else of_classes


def differentiated(
    total_of: Callable[[Tensor], Tensor], outputs: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A sum of losses and scale times its slope, by automatic differentiation."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = total_of(leaf.clone())  # a loss may work in place
    (slope,) = torch.autograd.grad(total, leaf, scale, allow_unused=True, materialize_grads=True)
    return total.detach(), slope


def _form(
    loss: Loss, outputs: tuple[int, ...], targets: Any, dtype: torch.dtype, axes: int
) -> NamedLoss | None:
    """The loss whose closed form takes an example's outputs and these targets."""
    if not isinstance(targets, Tensor):
        return None
    each = tuple(targets.shape[axes:])
    if mse == loss:
        return mse if each == outputs and targets.dtype == dtype else None
    if cross_entropy != loss or len(outputs) != 1 or each or targets.dtype != torch.int64:
        return None
    return cross_entropy if int(targets.min()) >= 0 and int(targets.max()) < outputs[0] else None


# as few kernels as can be: of a small network on a GPU each counts


def _cross_entropy(targets: Tensor, weight: float) -> Head:
    index = targets.unsqueeze(1)
    minus_one = torch.full_like(index, -1.0, dtype=torch.float64)

    def head(outputs: Tensor) -> tuple[Tensor, Tensor]:
        log = torch.log_softmax(outputs, 1, dtype=torch.float64)
        part = log.gather(1, index).sum().mul_(-weight)
        slope = log.exp_().scatter_add_(1, index, minus_one)
        return part, torch.mul(slope, weight, out=torch.empty_like(outputs))

    return head


def _mse(targets: Tensor, weight: float) -> Head:
    weight /= targets[0].numel()

    def head(outputs: Tensor) -> tuple[Tensor, Tensor]:
        error = outputs - targets
        return error.square().sum(dtype=torch.float64).mul_(weight), error.mul_(2 * weight)

    return head
