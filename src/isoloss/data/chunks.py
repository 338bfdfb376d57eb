"""The training set in chunks that are evaluated one at a time, always in the same order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoloss.data.reading import (
    Pair,
    Stream,
    check_same,
    examples_of,
    is_opaque,
    leaves,
    map_tensors,
    read,
)
from isoloss.errors import InputError, kind

AT_ONCE = 1000
IMAGES_AT_ONCE = 50  # on a CPU
IMAGES_AT_ONCE_ELSEWHERE = 250
MOST_TWICE = 256 * 2**20
"""Bytes of a training set that is kept in another type too."""


class Chunk(NamedTuple):
    """Examples that are evaluated together, of the problem's type and on its device."""

    inputs: Any  # a tensor or a structure of tensors, the examples along the first axis
    targets: Any  # likewise
    weights: Tensor | None  # shape (n,), float64, or None where all examples count alike

    @property
    def examples(self) -> int:
        """Number of examples."""
        return examples_of(self.targets)

    def first(self, count: int) -> Chunk:
        """Its first examples; all of them where they cannot be told apart."""
        if is_opaque(self[:2]):
            return self
        inputs, targets = map_tensors(lambda t: t[:count], self[:2])
        return Chunk(inputs, targets, None if self.weights is None else self.weights[:count])


class Chunks(Iterable[Chunk]):
    """A training set that can be gone through again and again, chunk by chunk: pairs placed once,
    or a stream (a DataLoader) that is read at every pass, one batch in memory at a time."""

    def __init__(
        self,
        data: Any,
        weights: Tensor | None = None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        size: int | None = None,
        check_targets: Callable[[Any], None] | None = None,
        channels_last: bool = True,
    ) -> None:
        self._pairs = read(data)
        self._channels_last = channels_last
        self._dtype, self._device, self._size = dtype, device, size
        if isinstance(self._pairs, Stream):
            check_same(self._pairs)
        self.examples = 0
        for inputs, targets in self._pairs:
            _check_numbers(inputs, "inputs", self.examples)
            _check_numbers(targets, "targets", self.examples)
            if check_targets is not None:
                check_targets(targets)
            self.examples += examples_of(targets)
        if self.examples == 0:
            raise InputError("data holds no example; give a pair of tensors (inputs, targets)")
        self.weights = None if weights is None else _checked_weights(weights, self.examples, device)
        total = self.examples if self.weights is None else self.weights.sum().item()
        self.total_weight = float(total)
        self._keep(not isinstance(self._pairs, Stream))

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks in order."""
        return self._placed() if self._kept is None else iter(self._kept)

    @property
    def kept(self) -> bool:
        """Whether the chunks stay as they are from pass to pass."""
        return self._kept is not None

    @property
    def longest(self) -> int:
        """Examples of the longest of the pairs that the data came in."""
        return max(examples_of(targets) for _, targets in self._pairs)

    @property
    def infinite(self) -> str:
        """Where infinite numbers are, "" for nowhere, for a sentence on a loss that is not finite;
        they are not refused as NaN are, since masks of attention are made of them."""
        start = 0
        for chunk in self:
            for part, tree in (("inputs", chunk.inputs), ("targets", chunk.targets)):
                for name, tensor in leaves(tree, part):
                    rows = tensor.isinf().nonzero()
                    if len(rows):
                        kind = str(tensor.dtype).removeprefix("torch.")
                        first = start + int(rows[0, 0])
                        return f"{name}, in {kind}, hold inf, first in example {first}"
            start += chunk.examples
        return ""

    def few(self, count: int, dtype: torch.dtype) -> Chunks:
        """The first examples, all counted alike, in one chunk of some type."""
        first = next(iter(self)).first(count)
        return Chunks(
            [(first.inputs, first.targets)],
            dtype=dtype,
            device=self._device,
            channels_last=self._channels_last,
        )

    def recut(self, size: int) -> Chunks:
        """The same examples in chunks of another size, without a copy."""
        other = copy.copy(self)
        other._size = size
        other._kept = list(other._placed()) if self.kept else None
        return other

    def sample(self, size: int) -> Chunks:
        """One chunk of so many examples, or of as many as one pair has; kept ones only."""
        other = self.recut(size)
        other._kept = [max(other, key=lambda chunk: chunk.examples)]
        return other

    def recast(self, dtype: torch.dtype) -> Chunks:
        """The same examples in another type, converted chunk by chunk at every pass where all of
        them would take more memory than a second set may."""
        other = copy.copy(self)
        other._dtype = dtype
        other._whole = other._kept = None
        if not isinstance(self._pairs, Stream):
            sizes = (t.numel() * dtype.itemsize for _, t in leaves(self._pairs, ""))
            other._keep(sum(sizes) <= MOST_TWICE)
        return other

    def __copy__(self) -> Chunks:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made of the pairs, and these in memory of their own."""
        pairs = self._pairs
        if not isinstance(pairs, Stream):
            pairs = map_tensors(torch.clone, pairs)
        return {**vars(self), "_pairs": pairs, "_whole": None, "_kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        vars(self).update(state)
        self._keep(state["_kept"])

    def _keep(self, keep: bool) -> None:
        self._whole = [self._map(pair) for pair in self._pairs] if keep else None
        self._kept = list(self._placed()) if keep else None

    def _placed(self) -> Iterator[Chunk]:
        start = 0
        for pair in self._whole or self._pairs:
            n = examples_of(pair[1])
            for cut in self._cuts(pair, n):
                inputs, targets = self._map(pair, cut)
                weights = self.weights
                if weights is not None:
                    weights = weights[start + cut.start : start + min(cut.stop, n)]
                yield Chunk(inputs, targets, weights)
            start += n

    def _cuts(self, pair: Pair, n: int) -> list[slice]:
        size = n if is_opaque(pair) else self._size or self._usual(pair)
        return [slice(k, k + size) for k in range(0, n, size)]

    def _usual(self, pair: Pair) -> int:
        if any(_is_image(tensor) for _, tensor in leaves(pair[0], "inputs")):
            return IMAGES_AT_ONCE if self._device.type == "cpu" else IMAGES_AT_ONCE_ELSEWHERE
        return AT_ONCE

    def _map(self, tree: Any, cut: slice = slice(None)) -> Any:
        return map_tensors(lambda tensor: self._place(tensor[cut]), tree)

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else None
        placed = tensor.to(self._device, dtype)
        if self._channels_last and _is_image(placed):
            return placed.contiguous(memory_format=torch.channels_last)
        return placed


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def _check_numbers(tree: Any, name: str, before: int) -> None:
    for leaf, tensor in leaves(tree, name):
        if not tensor.is_floating_point():
            continue
        bad = tensor.isnan()
        if bad.any():
            first = before + int(bad.nonzero()[0, 0])
            raise InputError(
                f"{leaf} hold {int(bad.sum())} NaN, the first in example {first}; take these "
                f"examples out or fill them in"
            )


def _checked_weights(weights: Tensor, examples: int, device: torch.device) -> Tensor:
    if not isinstance(weights, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"weights must be a tensor, got {kind(weights)}")
    if tuple(weights.shape) != (examples,):
        raise InputError(
            f"weights must hold one number for each of the {examples} examples, in the order of "
            f"the data, got shape {tuple(weights.shape)}"
        )
    placed = weights.detach().to(device, torch.float64)
    if not torch.isfinite(placed).all() or (placed < 0).any() or not (placed > 0).any():
        raise InputError(
            "weights must be finite and not negative, and not all zero; correct them or leave "
            "examples out of the data"
        )
    return placed
