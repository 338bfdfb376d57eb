"""Structures of tensors: tuples, lists, dicts of them, nested ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from isoloss.errors import InputError


def leaves(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a structure in order, each with its name, such as `inputs['mask']`."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, np.ndarray):
        raise InputError(f"{name} is a NumPy array; give a tensor, torch.from_numpy({name})")
    elif _is_opaque(tree):
        return
    elif isinstance(tree, Mapping):
        for key, value in cast("Mapping[Any, Any]", tree).items():
            yield from leaves(value, f"{name}[{key!r}]")
    else:
        for k, value in enumerate(tree):
            yield from leaves(value, f"{name}[{k}]")


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same structure with a function applied to each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if _is_opaque(tree):
        return tree
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree).items()
        return {key: map_tensors(function, value) for key, value in items}
    values = [map_tensors(function, value) for value in tree]
    if isinstance(tree, tuple):
        fields = hasattr(cast(Any, tree), "_fields")  # a named tuple
        return type(tree)(*values) if fields else tuple(values)
    return values


def is_opaque(tree: Any) -> bool:
    """Whether a structure has a part that is passed to the model as it is and cannot be cut."""
    if isinstance(tree, Tensor):
        return False
    if _is_opaque(tree):
        return True
    values = cast("Mapping[Any, Any]", tree).values() if isinstance(tree, Mapping) else tree
    return any(is_opaque(value) for value in values)


def _is_opaque(tree: Any) -> bool:
    return isinstance(tree, PackedSequence) or not isinstance(tree, (tuple, list, Mapping))
