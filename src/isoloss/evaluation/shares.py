"""What several ranks must have alike, and what each must have of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from isoloss.data import Chunks, leaves
from isoloss.errors import InputError
from isoloss.evaluation.ranks import Ranks
from isoloss.flat import FlatNetwork, digest, fixed

SHARE = "data=(inputs[rank::ranks], targets[rank::ranks])"


def check_alike(
    ranks: Ranks, network: FlatNetwork, settings: Mapping[str, Any], held: Tensor | None
) -> None:
    """Insist on the same model and settings on all ranks."""
    if ranks.count == 1:
        return
    shapes = {name: list(shape) for name, shape in network.layout.shapes.items()}
    mine = {"dtype": str(network.dtype), **settings, "mask": None if held is None else digest(held)}
    _compare(ranks, "settings", mine, "give all ranks the same")
    _compare(ranks, "shapes of parameters", shapes, "make the same model on all ranks")
    leaves = zip(network.layout.shapes, network.leaves, strict=True)
    numbers = {**dict(leaves), **fixed(network.model)}
    remedy = "load the same weights everywhere, or send rank 0's by torch.distributed.broadcast"
    _compare(ranks, "weights and buffers", {k: digest(t) for k, t in numbers.items()}, remedy)


def _compare(ranks: Ranks, what: str, mine: Mapping[str, Any], remedy: str) -> None:
    first, *others = ranks.gather(dict(mine))
    for number, other in enumerate(others, 1):
        for name in {**first, **other}:
            one, two = (found.get(name, "none") for found in (first, other))
            if one != two:
                raise InputError(
                    f"the ranks must have the same {what}, got for {name!r} {one} on rank 0 and "
                    f"{two} on rank {number}; {remedy}"
                )


def check_sampler(data: Any, ranks: Ranks) -> None:
    """Insist on a sampler that deals out each example once, to these ranks."""
    sampler = getattr(data, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        count, number = sampler.num_replicas, sampler.rank
        if count > 1 and ranks.count == 1:
            raise InputError(
                f"the data's DistributedSampler gives one share of {count}, of which the loss "
                f"would be; give Problem(group=torch.distributed.group.WORLD)"
            )
        if (count, number) != (ranks.count, ranks.number):
            raise InputError(
                f"the data's DistributedSampler gives share {number} of {count} on rank "
                f"{ranks.number} of {ranks.count}; give it num_replicas and rank of the group"
            )
        surplus = sampler.total_size - len(sampler.dataset)  # pyright: ignore[reportArgumentType]
        if surplus > 0 and not sampler.drop_last:
            _refuse_repeated(surplus)
    batches: Any = getattr(data, "batch_sampler", None)
    if getattr(batches, "even_batches", False):  # Accelerate's
        each = batches.batch_size * (1 if batches.split_batches else ranks.count)
        surplus = -len(data.dataset) % each
        if surplus:
            _refuse_repeated(surplus)


def _refuse_repeated(surplus: int) -> None:
    raise InputError(
        f"the data's sampler repeats {surplus} of the examples to make all shares equal, and the "
        f"loss would count them twice; give each rank a share of its own, DataLoader("
        f"Subset(dataset, range(rank, len(dataset), ranks)), ...), which may be unequal"
    )


def check_shares(ranks: Ranks, chunks: Chunks) -> None:
    """Insist on shares that are not the same, and that can be added up."""
    if chunks.one_number:
        raise InputError(
            "the loss gave one number for the data of each rank, of which that of the whole data "
            "cannot be made; give a loss per example"
        )
    prints = ranks.gather(fingerprint(chunks))
    for number, mine in enumerate(prints):
        first = prints.index(mine)
        if mine and first < number:
            raise InputError(
                f"ranks {first} and {number} hold the same examples, and each is to hold its own "
                f"share; give {SHARE}, or leave group out where every process is to walk alone"
            )


def fingerprint(chunks: Chunks) -> str:
    """A digest of the examples and their weights; "" where these are no tensors."""
    made, some = hashlib.sha256(), False
    for chunk in chunks:
        for _, tensor in leaves([chunk.inputs, chunk.targets, chunk.weights], ""):
            some = True
            made.update(digest(tensor).encode())
    return made.hexdigest()[:16] if some else ""
