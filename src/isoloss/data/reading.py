"""What a user may give as data: pairs of structures of tensors, kept or read again as a stream."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from isoloss.errors import InputError, kind

Pair = tuple[Any, Any]
SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
WANTED = (
    "data must be a pair of tensors (inputs, targets) with the examples along the first axis, "
    "or an iterable of such pairs"
)


class Stream:
    """Pairs read anew at every pass, one in memory at a time."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order; the global random states are left as they were."""
        with random_state_kept():
            iterator = iter(self._source)
        while True:
            with random_state_kept():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield as_pair(item)


def read(data: Any) -> list[Pair] | Stream:
    """The pairs that a user's data consists of."""
    if isinstance(data, tuple) and len(cast("tuple[Any, ...]", data)) == 2:
        pair = cast("Pair", data)
        if isinstance(pair[1], (Tensor, Mapping)):
            return [as_pair(pair)]
        if all(isinstance(part, (tuple, list)) and len(part) == 2 for part in pair):
            raise InputError(
                "data of two pairs may be one pair of structures or two batches; write "
                "[((x, mask), (y, mask))] for one pair of inputs and targets, or "
                "[(x, y), (x2, y2)], a list, for two batches"
            )
    if isinstance(data, Dataset):
        raise InputError(
            f"data is {kind(cast(Any, data))} of single examples; it must be a pair of "
            f"tensors or pairs of batches: give torch.utils.data.DataLoader(data, batch_size=...)"
        )
    if isinstance(data, DataLoader):
        loader = cast("DataLoader[Any]", data)
        if isinstance(loader.sampler, SHUFFLING):
            raise InputError(
                f"the DataLoader gives its examples in another order each time (its sampler is a "
                f"{type(loader.sampler).__name__}); use DataLoader(..., shuffle=False)"
            )
        return Stream(loader)
    if not isinstance(data, Iterable) or isinstance(data, (Tensor, np.ndarray, Mapping, str)):
        raise InputError(WANTED)
    items = cast("Iterable[Any]", data)
    if isinstance(items, (list, tuple, Iterator)):
        return [as_pair(item) for item in items]
    return Stream(items)


def as_pair(item: Any) -> Pair:
    """One batch of a user's data as inputs and targets."""
    if not isinstance(item, (tuple, list)) or len(cast("list[Any]", item)) != 2:
        raise InputError(WANTED)
    inputs, targets = cast("list[Any]", item)
    tensors = [*leaves(inputs, "inputs"), *leaves(targets, "targets")]
    if not tensors or tensors[-1][0].startswith("inputs"):
        raise InputError(f"{WANTED}; the targets are {type(targets).__name__}")
    for name, tensor in tensors:
        if tensor.ndim == 0:
            raise InputError(f"{WANTED}; {name} is a single number")
        if tensor.is_meta or tensor.layout != torch.strided:
            what = "on the device 'meta'" if tensor.is_meta else f"{tensor.layout}"
            raise InputError(f"{WANTED}; {name} is {what}, of which no examples can be cut")
    n = examples_of(targets)
    for name, tensor in tensors:
        if len(tensor) != n:
            raise InputError(
                f"data has {len(tensor)} {name} and {n} targets; give one each, with the examples "
                f"along the first axis"
            )
    return inputs, targets


def examples_of(targets: Any) -> int:
    """Number of examples of a pair with these targets."""
    return len(next(tensor for _, tensor in leaves(targets, "targets")))


@contextmanager
def random_state_kept() -> Generator[None]:
    """Put the global random states of torch, NumPy and Python back at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=used):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def check_same(stream: Stream) -> None:
    """Read a stream twice and insist on the same examples in the same order."""
    first = _prints(stream)
    with random_state_kept():
        seed = random.getrandbits(31)  # a random reading must not see the numbers of the first
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed + 1)
        second = _prints(stream)
    if first == second:
        return
    if len(first) != len(second):
        raise InputError(
            f"the data gave {len(first)} examples when read and {len(second)} when read again; "
            f"give an object that can be read again and again, or its batches: list(data)"
        )
    if Counter(first) == Counter(second):
        raise InputError(
            "the data come in another order each time they are read (they are shuffled); use "
            "DataLoader(..., shuffle=False) or a sampler with a fixed order"
        )
    where = next(k for k, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    raise InputError(
        f"example {where} is another each time the data are read: a random augmentation or random "
        f"sampling is in the data set; take it out, or keep one reading with list(data)"
    )


def _prints(pairs: Iterable[Pair]) -> list[bytes]:
    """A digest of each example, in order."""
    prints: list[bytes] = []
    for pair in pairs:
        n = examples_of(pair[1])
        flat = [t.detach().cpu().contiguous().reshape(n, -1) for _, t in leaves(pair, "")]
        rows: list[Any] = [tensor.view(torch.uint8).numpy() for tensor in flat]
        whole = (b"".join(row[k].tobytes() for row in rows) for k in range(n))
        prints += [hashlib.blake2b(content).digest()[:16] for content in whole]
    return prints


# ---------------------------------------------------------------- structures of tensors


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
