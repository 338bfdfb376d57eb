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
    moved,
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
    targets: Any  # likewise, or None
    weights: Tensor | None  # shape (n,), float64, or None where all examples count alike
    examples: int  # n
    whole: bool = False  # whether its examples cannot be told apart

    def first(self, count: int) -> Chunk:
        """Its first examples; all of them where they cannot be told apart."""
        return self.take(slice(count))

    def take(self, rows: slice | Tensor) -> Chunk:
        """Some of its examples; all of them where they cannot be told apart."""
        if self.whole:
            return self
        inputs, targets = map_tensors(lambda tensor: tensor[rows], self[:2])
        weights = None if self.weights is None else self.weights[rows]
        return Chunk(inputs, targets, weights, examples_of((inputs, targets)))


class Part(NamedTuple):
    """The examples of one batch that count."""

    inputs: Any
    targets: Any
    weights: Tensor | None
    examples: int
    whole: bool
    rows: Tensor | None  # which ones of the batch; None for all


class Chunks(Iterable[Chunk]):
    """A training set that can be gone through again and again, chunk by chunk: batches placed once,
    or a stream (a DataLoader) that is read at every pass, one batch in memory at a time. Examples
    of weight 0 are left out where they can be told apart.

    `counts` gives, for targets, what each example adds to the divisor of the loss. `losses_in`
    says that batches are no pairs and stay whole: how many losses one has, 0 for one number.
    """

    def __init__(
        self,
        data: Any,
        weights: Tensor | None = None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        size: int | None = None,
        counts: Callable[[Any], Tensor | None] | None = None,
        losses_in: Callable[[Any], int] | None = None,
        channels_last: bool = True,
    ) -> None:
        self._batches = read(data, paired=losses_in is None)
        self._channels_last = channels_last
        self._dtype, self._device, self._size = dtype, device, size
        self._uncut = losses_in is not None
        self._weights = None if weights is None else _checked_weights(weights, device)
        if isinstance(self._batches, Stream):
            check_same(self._batches)
        self._sizes: list[int] = []
        self.given = 0  # examples, those of weight 0 too
        used: list[Tensor] = []
        counted: list[float] = []
        forms: set[bool] = set()
        single = False  # whether the loss of a batch is one number
        self._largest = 0
        for pair in self._batches:
            n = examples_of(pair) if losses_in is None else losses_in(self._map(pair[0]))
            single, n = single or (self._uncut and n == 0), max(n, int(self._uncut))
            self._sizes.append(n)
            forms.add(pair[1] is None)
            if len(forms) > 1:
                raise InputError(
                    "some batches of the data are pairs (inputs, targets) and some inputs alone; "
                    "give all of them in one form"
                )
            part = self._part(pair, self.given, n)
            _check_numbers(part, self.given)
            self._largest = max(self._largest, min(part.examples, self._size_of(part)))
            each = None if counts is None else counts(part.targets)
            if each is not None:
                each = each.to(device)
                counted.append((each if part.weights is None else each * part.weights).sum().item())
            if self._weights is not None:
                rows = torch.arange(n, device=device) if part.rows is None else part.rows
                used.append(self.given + rows)
            self.given += n
        if self.given == 0:
            raise InputError("data holds no example; give a pair of tensors (inputs, targets)")
        if single and (len(self._sizes) > 1 or weights is not None):
            _refuse_one_number(len(self._sizes))
        self.one_number = single
        if self._weights is not None and len(self._weights) != self.given:
            raise InputError(
                f"weights must hold one number for each of the {self.given} examples, in the order "
                f"of the data, got shape {tuple(self._weights.shape)}"
            )
        self.numbers = torch.cat(used) if used else None
        """Which examples of the data count; None for all."""
        self.examples = self.given if self.numbers is None else len(self.numbers)
        self.weights = None if self._weights is None else self._weights[self.numbers]
        total = self.examples if self.weights is None else self.weights.sum().item()
        self.total_weight = float(total)
        self.divisor = sum(counted) if counted else self.total_weight
        """What the weighted sum of the losses is divided by."""
        if not self.divisor > 0:
            raise InputError(
                "no target counts in the loss: all are ignored or of classes of weight 0; correct "
                "the targets or the loss"
            )
        self._keep(not isinstance(self._batches, Stream))

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks in order."""
        return self._placed() if self._kept is None else iter(self._kept)

    @property
    def kept(self) -> bool:
        """Whether the chunks stay as they are from pass to pass."""
        return self._kept is not None

    @property
    def cuttable(self) -> bool:
        """Whether there are chunks of other sizes."""
        return self.kept and not self._uncut

    @property
    def largest(self) -> int:
        """Examples of the largest chunk."""
        if self._kept is None:
            return self._largest
        return max(chunk.examples for chunk in self._kept)

    @property
    def longest(self) -> int:
        """Examples of the longest of the batches that the data came in."""
        return max(self._sizes)

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
                        first = self.number(start + int(rows[0, 0]))
                        return f"{name}, in {kind}, hold inf, first in example {first}"
            start += chunk.examples
        return ""

    def number(self, k: int) -> int:
        """Which example of the data the k-th that counts is."""
        return k if self.numbers is None else int(self.numbers[k])

    def few(self, count: int, dtype: torch.dtype) -> Chunks:
        """The first examples, all counted alike, in one chunk of some type."""
        other, first = copy.copy(self), next(iter(self)).first(count)
        other._dtype = dtype
        inputs, targets = other._map(first[:2])
        other._kept = [Chunk(inputs, targets, None, first.examples, first.whole)]
        other.weights = other.numbers = other._whole = None
        other.examples = other.given = first.examples
        other.total_weight = other.divisor = float(first.examples)
        return other

    def recut(self, size: int) -> Chunks:
        """The same examples in chunks of another size, without a copy."""
        other = copy.copy(self)
        other._size = size
        other._kept = list(other._placed()) if self.kept else None
        return other

    def alike(self, inputs: Any) -> Chunks:
        """Other inputs, without targets, in the same type, place and number at once."""
        return Chunks(
            [(inputs, None)],
            dtype=self._dtype,
            device=self._device,
            size=self._size,
            channels_last=self._channels_last,
        )

    def sample(self, size: int) -> Chunks:
        """One chunk of so many examples, or of as many as one batch has; kept ones only."""
        other = self.recut(size)
        other._kept = [max(other, key=lambda chunk: chunk.examples)]
        return other

    def recast(self, dtype: torch.dtype) -> Chunks:
        """The same examples in another type, converted chunk by chunk at every pass where all of
        them would take more memory than a second set may."""
        other = copy.copy(self)
        other._dtype = dtype
        other._whole = other._kept = None
        if not isinstance(self._batches, Stream):
            sizes = (t.numel() * dtype.itemsize for _, t in leaves(self._batches, ""))
            other._keep(sum(sizes) <= MOST_TWICE)
        return other

    def __copy__(self) -> Chunks:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made of the batches, and these in memory of their own."""
        batches = self._batches
        if not isinstance(batches, Stream):
            batches = map_tensors(torch.clone, batches)
        return {**vars(self), "_batches": batches, "_whole": None, "_kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        vars(self).update(state)
        self._keep(state["_kept"])

    def _keep(self, keep: bool) -> None:
        self._whole = list(self._parts(place=True)) if keep else None
        self._kept = list(self._placed()) if keep else None

    def _parts(self, *, place: bool = False) -> Iterator[Part]:
        start = 0
        for pair, n in zip(self._batches, self._sizes, strict=True):
            part = self._part(pair, start, n)
            start += n
            if part.examples:
                inputs, targets = self._map(part[:2]) if place else part[:2]
                yield part._replace(inputs=inputs, targets=targets)

    def _part(self, pair: Pair, start: int, n: int) -> Part:
        """What counts of a batch of n examples, of which the first has the number `start`."""
        (inputs, targets), rows = pair, None
        whole = self._uncut or is_opaque(pair)
        weights = None if self._weights is None else self._weights[start : start + n]
        if weights is not None and not whole and not weights.all():
            rows = weights.nonzero().flatten()
            inputs, targets = map_tensors(lambda tensor: tensor[rows.to(tensor.device)], pair)
            weights, n = weights[rows], len(rows)
        return Part(inputs, targets, weights, n, whole, rows)

    def _placed(self) -> Iterator[Chunk]:
        for part in self._whole or self._parts():
            n, whole, size = part.examples, part.whole, self._size_of(part)
            for start in range(0, n, size):
                cut = slice(start, min(start + size, n))
                inputs, targets = self._map(part[:2], None if whole else cut)
                weights = None if part.weights is None else part.weights[cut]
                yield Chunk(inputs, targets, weights, cut.stop - start, whole)

    def _size_of(self, part: Part) -> int:
        """Examples that are evaluated at once."""
        if part.whole:
            return part.examples
        if self._size:
            return self._size
        if any(_is_image(tensor) for _, tensor in leaves(part.inputs, "inputs")):
            return IMAGES_AT_ONCE if self._device.type == "cpu" else IMAGES_AT_ONCE_ELSEWHERE
        return AT_ONCE

    def _map(self, tree: Any, cut: slice | None = None) -> Any:
        def place(tensor: Tensor) -> Tensor:
            return self._place(tensor if cut is None else tensor[cut])

        return map_tensors(place, tree, lambda other: moved(other, place))

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else None
        dtype = self._dtype.to_complex() if tensor.is_complex() else dtype
        placed = tensor.detach().to(self._device, dtype)
        if placed.is_inference():  # autograd could not keep it
            placed = placed.clone()
        if self._channels_last and _is_image(placed):
            return placed.contiguous(memory_format=torch.channels_last)
        return placed


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def _check_numbers(part: Part, before: int) -> None:
    whole = [("batch", part.inputs)] if part.targets is None and part.whole else []
    for name, tree in whole or (("inputs", part.inputs), ("targets", part.targets)):
        for leaf, tensor in leaves(tree, name):
            if not tensor.is_floating_point() or tensor.layout != torch.strided:
                continue
            bad = tensor.isnan()
            if bad.any():
                row = int(bad.nonzero()[0, 0]) if tensor.ndim else 0
                first = before + (row if part.rows is None else int(part.rows[row]))
                raise InputError(
                    f"{leaf} hold {int(bad.sum())} NaN, the first in example {first}; take these "
                    f"examples out, give them the weight 0, or fill them in"
                )


def _refuse_one_number(batches: int) -> None:
    if batches == 1:
        raise InputError(
            "weights are for a loss per example, and the loss gave one number for the whole data; "
            "weigh the examples within it"
        )
    raise InputError(
        f"the loss gave one number for each of {batches} batches, of which that of the whole data "
        f"cannot be made; give one batch, [batch], or one loss per example"
    )


def _checked_weights(weights: Tensor, device: torch.device) -> Tensor:
    if not isinstance(weights, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"weights must be a tensor, got {kind(weights)}")
    if weights.is_nested or weights.layout != torch.strided or weights.is_meta:
        raise InputError("weights must be a plain tensor of numbers; give weights.to_dense()")
    if weights.ndim != 1:
        raise InputError(
            f"weights must hold one number for each example, in the order of the data, got shape "
            f"{tuple(weights.shape)}"
        )
    placed = weights.detach().to(device, torch.float64).clone()
    if not torch.isfinite(placed).all() or (placed < 0).any() or not (placed > 0).any():
        raise InputError(
            "weights must be finite and not negative, and not all zero; correct them or leave "
            "examples out of the data"
        )
    return placed
