"""Networks that are differentiated by hand, and such as look like them but are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Make = Callable[[], nn.Module]


def seeded(*layers: nn.Module) -> nn.Sequential:
    """A network in float64, always with the same parameters."""
    model, source = nn.Sequential(*layers).double(), torch.Generator().manual_seed(0)
    for p in model.parameters():
        fan = max(1, p[0].numel())
        p.data = torch.randn(p.shape, generator=source, dtype=p.dtype) / fan**0.5
    return model


def dense() -> nn.Sequential:
    return seeded(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def images() -> nn.Sequential:
    first = nn.Conv2d(2, 5, 3), nn.Tanh(), nn.AvgPool2d(2)
    second = nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AvgPool2d(2)
    return seeded(*first, *second, nn.Flatten(), nn.Linear(4, 3))


def strided() -> nn.Sequential:
    first = nn.Conv2d(2, 4, (3, 2), stride=(2, 1)), nn.ReLU()
    second = nn.Conv2d(4, 3, 3, stride=2, padding=(1, 2)), nn.Tanh()
    return seeded(*first, *second, nn.Flatten(), nn.Linear(3 * 2 * 4, 3))


def pooled() -> nn.Sequential:
    first = nn.AvgPool2d(2), nn.Tanh(), nn.Conv2d(2, 4, 2), nn.AvgPool2d((2,)), nn.ReLU()
    return seeded(*first, nn.Flatten(), nn.Linear(4, 3))


def pools() -> nn.Sequential:
    first = nn.Conv2d(2, 3, 2), nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), nn.Tanh()
    other = nn.AvgPool2d((1, 2), count_include_pad=False, divisor_override=3)
    return seeded(*first, other, nn.Flatten(), nn.Linear(3 * 5 * 2, 3))


PLAIN: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "dense": (dense, (4,)),
    "one layer": (lambda: seeded(nn.Linear(4, 3)), (4,)),
    "rectified": (lambda: seeded(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), (4,)),
    "linear after linear": (lambda: seeded(nn.Linear(4, 5), nn.Linear(5, 3)), (4,)),
    "ends in tanh": (lambda: seeded(nn.Linear(4, 3), nn.Tanh()), (4,)),
    "nested": (lambda: nn.Sequential(dense(), seeded(nn.Linear(3, 3), nn.Tanh())), (4,)),
    "flattened": (lambda: seeded(nn.Flatten(), nn.Linear(24, 3), nn.Flatten()), (2, 3, 4)),
    "images": (images, (2, 10, 13)),
    "strides and padding": (strided, (2, 8, 6)),
    "many channels": (
        lambda: seeded(nn.Conv2d(9, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), (9, 3, 3)
    ),
    "padded at once": (
        lambda: seeded(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(27, 3)), (1, 3, 3)
    ),
    "pooled first and last": (pooled, (2, 6, 7)),
    "pools of all kinds": (pools, (2, 9, 9)),
}  # fmt: skip
"""Plain networks of three outputs, with the shape of an input."""


def changed(change: Callable[[Any], Any], make: Make = dense) -> Make:
    def build() -> nn.Module:
        model = make()
        change(model)
        return model

    return build


def square() -> nn.Sequential:
    return seeded(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))


def reordered(layer: nn.Module) -> None:
    weight = layer.weight
    del layer.weight
    layer.weight = weight


def normed(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight")


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.3)
    prune.remove(layer, "weight")


REORDERED: dict[str, tuple[Make, tuple[int, ...]]] = {
    "bias first": (changed(lambda m: reordered(m[0])), (4,)),
    "bias first, square": (changed(lambda m: reordered(m[0]), square), (4,)),
    "weight norm removed": (changed(lambda m: normed(m[0])), (4,)),
    "pruned": (changed(lambda m: pruned(m[2])), (4,)),
    "a convolution's bias first": (changed(lambda m: reordered(m[3]), images), (2, 10, 13)),
}
"""Plain ones whose parameters come in another order than their layers take them."""


def hooked(register: str, k: int, hook: Callable[..., Any]) -> Make:
    return changed(lambda m: getattr(m[k], register)(hook))


def twice() -> nn.Module:
    layer = nn.Linear(4, 4).double()
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3).double())


def tie(model: nn.Sequential) -> None:
    model[2].weight = model[0].weight


def no_parameter(layer: nn.Module) -> None:
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Row(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


OTHERS: dict[str, Make] = {
    "a forward hook": hooked("register_forward_hook", 0, lambda _, __, y: 2 * y),
    "a forward hook before": hooked("register_forward_pre_hook", 1, lambda _, x: (2 * x[0],)),
    "a backward hook": hooked("register_full_backward_hook", 1, lambda _, g, __: (2 * g[0],)),
    "a backward hook before": hooked(
        "register_full_backward_pre_hook", 1, lambda _, g: (2 * g[0],)
    ),
    "a hook of the whole": changed(lambda m: m.register_forward_hook(lambda _, __, y: 2 * y)),
    "a frozen layer": changed(lambda m: m[0].requires_grad_(False)),
    "a frozen bias": changed(lambda m: m[2].bias.requires_grad_(False)),
    "a shared matrix": changed(tie, square),
    "a layer used twice": twice,
    "no bias": lambda: seeded(nn.Linear(4, 3, bias=False)),
    "a bias of one number": changed(lambda m: setattr(m[2], "bias", nn.Parameter(m[2].bias[:1]))),
    "a matrix that is no parameter": changed(lambda m: no_parameter(m[0])),
    "a shadowed matrix": changed(lambda m: vars(m[0]).update(weight=m[0].weight.detach() / 2)),
    "a parameter of the whole": changed(
        lambda m: m.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    ),
    "a parameter besides": changed(
        lambda m: m[0].register_parameter("unused", nn.Parameter(torch.ones(6).double()))
    ),
    "a buffer": changed(lambda m: m[0].register_buffer("scale", torch.ones(6).double())),
    "a layer within a layer": changed(lambda m: m[1].add_module("inner", nn.Linear(6, 6).double())),
    "a subclass of a layer": lambda: seeded(Doubled(4, 3)),
    "a subclass of Sequential": lambda: Row(nn.Linear(4, 3)).double(),
    "another forward": changed(lambda m: setattr(m[1], "forward", torch.sin)),
    "a parametrization": changed(lambda m: parametrizations.weight_norm(m[0])),
    "another activation": lambda: seeded(nn.Linear(4, 3), nn.Sigmoid()),
    "dropout at rest": lambda: seeded(nn.Linear(4, 3), nn.Dropout()).eval(),
    "an activation first": lambda: seeded(nn.Tanh(), nn.Linear(4, 3)),
    "two activations": lambda: seeded(nn.Linear(4, 3), nn.Tanh(), nn.ReLU()),
}
"""Networks of inputs of shape (4,) that are more, or less, than plain."""
