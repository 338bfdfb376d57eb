"""What a user may give as data: batches of structures of tensors, kept or read as a stream."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
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
"""Inputs and targets of a batch; the targets are None where it has none."""
SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
WANTED = (
    "data must be a pair of tensors (inputs, targets) with the examples along the first axis, "
    "or an iterable of such pairs"
)
SINGLE = "batch single examples by torch.utils.data.DataLoader(data, batch_size=...)"
WHOLE = (
    "data must be one batch as the loss takes it, a tensor, a dict, a tuple of tensors or any "
    "object, or a list of batches"
)


class Stream:
    """Pairs read anew at every pass, one in memory at a time."""

    def __init__(self, source: Iterable[Any], *, paired: bool = True) -> None:
        self._source, self._paired = source, paired

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
            yield as_pair(item, paired=self._paired)


def read(data: Any, *, paired: bool = True) -> list[Pair] | Stream:
    """The batches that a user's data consists of: pairs of inputs and targets, or inputs alone; if
    not `paired`, each whole in place of the inputs."""
    if _is_batch(data, paired=paired):
        return [as_pair(data, paired=paired)]
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
        return Stream(loader, paired=paired)
    if not isinstance(data, Iterable) or isinstance(data, (np.ndarray, str, bytes, nn.Module)):
        raise InputError(f"{WANTED if paired else WHOLE}, got {_described(data)}")
    items = cast("Iterable[Any]", data)
    if isinstance(items, (list, tuple, Iterator)):
        return [as_pair(item, paired=paired) for item in items]
    return Stream(items, paired=paired)


def _is_batch(data: Any, *, paired: bool) -> bool:
    """Whether data are one batch, not an iterable of batches."""
    if not isinstance(data, tuple) or isinstance(data, PackedSequence):
        moves = hasattr(data, "to") and not isinstance(data, (Dataset, nn.Module))
        return moves or hasattr(data, "to_numpy") or _is_fields(data)
    parts = cast("tuple[Any, ...]", data)
    nested = [isinstance(part, (tuple, list)) for part in parts]
    if len(parts) == 2 and all(nested) and (not paired or all(len(part) == 2 for part in parts)):
        raise InputError(
            "data of two pairs may be one pair of structures or two batches; write "
            "[((x, mask), (y, mask))] for one pair of inputs and targets, or "
            "[(x, y), (x2, y2)], a list, for two batches"
        )
    return not all(nested) or (len(parts) == 2 and paired and _is_plain(parts[1]))


def as_pair(item: Any, *, paired: bool = True) -> Pair:
    """One batch of a user's data as inputs and targets, or as it is and None."""
    if not paired:
        for name, tensor in leaves(item, "batch"):
            _check_layout(name, tensor, cut=False)
        return item, None
    several = isinstance(item, (tuple, list)) and not isinstance(item, PackedSequence)
    inputs, targets = item, None
    if several and len(cast("list[Any]", item)) == 2:
        inputs, targets = cast("list[Any]", item)
    elif several and len(cast("list[Any]", item)) != 1:
        raise InputError(
            f"{WANTED}, got a batch that is {_described(item)}; write ((x, mask), y) where a model "
            f"takes two inputs"
        )
    tensors = [*leaves(inputs, "inputs"), *leaves(targets, "targets")]
    for part, tree, none in (
        ("inputs", inputs, inputs is None or isinstance(inputs, (str, bytes))),
        ("targets", targets, targets is not None and not _some(targets, "targets")),
    ):
        if none or _is_plain(tree):
            remedy = "give a tensor" + f", and {SINGLE}" * isinstance(tree, (int, float))
            raise InputError(f"{WANTED}, got {part} that are {_described(tree)}; {remedy}")
    for name, tensor in tensors:
        _check_layout(name, tensor, cut=True)
        if tensor.ndim == 0:
            raise InputError(f"{WANTED}; {name} is a single number; {SINGLE}")
    n = examples_of((inputs, targets))
    for name, tensor in tensors:
        if len(tensor) != n:
            other = "inputs" if targets is None else "targets"
            raise InputError(
                f"data has {len(tensor)} {name} and {n} {other}; give one each, with the examples "
                f"along the first axis, or, where examples cannot be told apart (a graph), a loss "
                f"that is a function of (model, batch)"
            )
    return inputs, targets


def examples_of(pair: Pair) -> int:
    """Number of examples of a pair: entries of the first tensor of its targets, or its inputs."""
    inputs, targets = pair
    found = next((t for _, t in leaves([targets, inputs], "data")), None)
    return 1 if found is None else len(found)


def _check_layout(name: str, tensor: Tensor, *, cut: bool) -> None:
    if tensor.is_meta:
        raise InputError(f"{name} is on the device 'meta', which holds no numbers; give a tensor")
    if tensor.is_nested:
        raise InputError(f"{name} is a nested tensor; give tensor.to_padded_tensor(0) and a mask")
    if cut and tensor.layout != torch.strided:
        raise InputError(
            f"{name} is {tensor.layout}, which cannot be cut into chunks; give tensor.to_dense(), "
            f"or a loss that is a function of (model, batch)"
        )


def _is_plain(tree: Any) -> bool:
    """Whether it is made of numbers alone, where tensors should be."""
    if isinstance(tree, (list, tuple)) or _is_fields(tree):
        values = list(_fields(tree).values() if _is_fields(tree) else cast("list[Any]", tree))
        return bool(values) and all(map(_is_plain, values))
    return isinstance(tree, (int, float))


def _some(tree: Any, name: str) -> bool:
    return next(leaves(tree, name), None) is not None


def _described(value: Any) -> str:
    """What was given, for use within a sentence: `a list of 3 tensors`."""
    if isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
        kinds = sorted({"tensor" if isinstance(p, Tensor) else type(p).__name__ for p in parts})
        of = kinds[0] if len(kinds) == 1 else "part"
        return f"{kind(parts)} of {len(parts)} {of}{'s' * (len(parts) != 1)}"
    return kind(value)


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
        tensors = [t.detach().cpu().contiguous() for _, t in leaves(pair, "")]
        n = examples_of(pair)
        n = n if all(t.shape[:1] == (n,) for t in tensors) else 1
        flat = [t.reshape(n, -1) for t in tensors]
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
    elif hasattr(tree, "to_numpy"):
        raise InputError(f"{name} is {kind(tree)}; give a tensor, torch.tensor({name}.to_numpy())")
    elif tree is None or _is_opaque(tree):
        return
    elif _is_fields(tree):
        for key, value in _fields(tree).items():
            yield from leaves(value, f"{name}[{key!r}]")
    else:
        for k, value in enumerate(tree):
            yield from leaves(value, f"{name}[{k}]")


def map_tensors(
    function: Callable[[Tensor], Tensor], tree: Any, other: Callable[[Any], Any] | None = None
) -> Any:
    """The same structure with a function applied to each tensor, another one to what is opaque."""
    if isinstance(tree, Tensor):
        return function(tree)
    if tree is None:
        return None
    if _is_opaque(tree):
        return tree if other is None else other(tree)
    if _is_fields(tree):
        items = _fields(tree).items()
        return _with_fields(tree, {k: map_tensors(function, v, other) for k, v in items})
    values = [map_tensors(function, value, other) for value in tree]
    if isinstance(tree, tuple):
        fields = hasattr(cast(Any, tree), "_fields")  # a named tuple
        return type(tree)(*values) if fields else tuple(values)
    return values


def moved(tree: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """An object that cannot be cut with its tensors placed, where it says how."""
    if isinstance(tree, PackedSequence):
        like = place(tree.data)
        return cast("Any", tree).to(like.device, like.dtype)
    if hasattr(tree, "to") and hasattr(tree, "apply") and not isinstance(tree, nn.Module):
        return copy.copy(tree).apply(place)  # as the graphs of torch_geometric
    return tree


def is_opaque(tree: Any) -> bool:
    """Whether a structure has a part that is passed to the model as it is and cannot be cut."""
    if tree is None or isinstance(tree, Tensor):
        return False
    if _is_opaque(tree):
        return True
    values = _fields(tree).values() if _is_fields(tree) else tree
    return any(is_opaque(value) for value in values)


def _is_opaque(tree: Any) -> bool:
    if isinstance(tree, PackedSequence):
        return True
    return not isinstance(tree, (tuple, list)) and not _is_fields(tree)


def _is_fields(tree: Any) -> bool:
    """Whether it is a dict or the like, or a dataclass, as the outputs of transformers are."""
    made = dataclasses.is_dataclass(tree) and not isinstance(tree, type)
    return made or isinstance(tree, Mapping)


def _fields(tree: Any) -> dict[Any, Any]:
    if isinstance(tree, Mapping):
        return dict(cast("Mapping[Any, Any]", tree))
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _with_fields(tree: Any, values: dict[Any, Any]) -> Any:
    """A structure of the same kind with other values."""
    if type(tree) is dict:
        return values
    made = copy.copy(tree)
    if not isinstance(tree, Mapping):
        for name, value in values.items():
            object.__setattr__(made, name, value)  # it may be frozen
    elif hasattr(made, "__setitem__"):
        for key, value in values.items():
            made[key] = value
    else:
        return values
    return made
