"""The entries of theta that a walk leaves as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.errors import InputError, kind, unknown
from isoloss.flat import FlatNetwork, Layout, flatten


def held_entries(network: FlatNetwork, mask: Mapping[str, Any] | None) -> Tensor | None:
    """Those that a mask of parameters by name leaves out and the padding of embeddings; shape
    (size,), None for no such entry."""
    held = _padding(network)
    if mask is not None:
        held |= _left_out(mask, network.layout).to(held.device)
    return held if held.any() else None


def _padding(network: FlatNetwork) -> Tensor:
    """Rows to which torch gives no gradient, whatever the loss makes of them: training leaves them
    as they are, too. Where the matrix is tied to another layer, that layer trains them."""
    found = torch.zeros(network.size, dtype=torch.bool, device=network.device)
    if not isinstance(network.model, nn.Module):
        return found
    views = zip(network.leaves, network.layout.split(found), strict=True)
    rows = {id(leaf): view for leaf, view in views}
    modules = list(network.model.modules())
    used = [id(p) for module in modules for p in module._parameters.values()]  # pyright: ignore[reportPrivateUsage]
    for module in modules:
        if not isinstance(module, nn.Embedding) or module.padding_idx is None:
            continue
        weight = id(module.weight)
        if weight in rows and used.count(weight) == 1:
            rows[weight][module.padding_idx] = True
    return found


def _left_out(mask: Mapping[str, Any], layout: Layout) -> Tensor:
    if not isinstance(mask, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"mask must be a dict of boolean tensors by name, got {kind(mask)}")
    for name, free in mask.items():
        if name not in layout.shapes:
            raise unknown("trainable parameter in mask", str(name), layout.shapes)
        shape = layout.shapes[name]
        if not isinstance(free, Tensor) or free.dtype != torch.bool or free.shape != shape:
            given = (
                f"{free.dtype} of {tuple(free.shape)}" if isinstance(free, Tensor) else kind(free)
            )
            raise InputError(
                f"mask[{name!r}] must be a boolean tensor of shape {shape}, True for the entries "
                f"to walk over, got {given}"
            )
    held = flatten(
        [
            ~mask[k].cpu() if k in mask else torch.zeros(s, dtype=torch.bool, device="cpu")
            for k, s in layout.shapes.items()
        ]
    )
    if held.all():
        raise InputError("mask leaves no entry to walk over; set some to True")
    return held
