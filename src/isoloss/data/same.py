"""Whether a stream of data gives the same examples each time it is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isoloss.data.reading import Pair, Stream, examples_of, random_state_kept, stir_random_state
from isoloss.data.structure import leaves
from isoloss.errors import InputError


def check_same(stream: Stream) -> None:
    """Read a stream twice and insist on the same examples in the same order.

    Args:
        stream: Read batch by batch; of each example only a hash is kept.

    Raises:
        InputError: The second reading gave something else; the text says what and what to do.
    """
    first = _prints(stream)
    with random_state_kept():
        stir_random_state()  # a random reading must not see the numbers of the first
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
    return [print_ for pair in pairs for print_ in _of_examples(pair)]


def _of_examples(pair: Pair) -> list[bytes]:
    n = examples_of(pair[1])
    tensors = [tensor for _, tensor in [*leaves(pair[0], ""), *leaves(pair[1], "")]]
    rows = [_bytes(tensor, n) for tensor in tensors]
    return [hashlib.blake2b(b"".join(row[k] for row in rows)).digest()[:16] for k in range(n)]


def _bytes(tensor: Tensor, n: int) -> list[bytes]:
    plain: Any = tensor.detach().cpu().contiguous().reshape(n, -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in plain]
