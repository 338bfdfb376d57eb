"""How the loss and its derivatives are computed: one interface, small classes, one choice."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from isoloss._kernels.capture import records
from isoloss._kernels.chain import keep_freed_memory, plain
from isoloss.data import Chunk, Chunks, random_state_kept
from isoloss.errors import InputError
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.by_hand import ByHand
from isoloss.evaluation.distributed import Distributed
from isoloss.evaluation.gauss_newton import dense_layers, gauss_newton
from isoloss.evaluation.group import ranks_of
from isoloss.evaluation.interface import Evaluation
from isoloss.evaluation.ranks import Ranks
from isoloss.evaluation.recorded import Recorded, Replayed
from isoloss.evaluation.reduced import Reduced
from isoloss.evaluation.rows import GaussNewton
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss, ModelLoss, NamedLoss

__all__ = [
    "Autograd",
    "Evaluation",
    "GaussNewton",
    "Ranks",
    "Recorded",
    "Reduced",
    "Replayed",
    "choose",
    "dense_layers",
    "fitting_now",
    "gauss_newton",
    "measured_size",
    "ranks_of",
    "recording",
    "rounded",
    "saved_bytes",
]

IMAGES = (16, 128)
VECTORS = (64, 1024)
"""Smallest and largest chunk that is tried: of images, of all else."""

MOST_BYTES = 512 * 2**20
"""Autograd's own cost of a chunk is larger, so of images too it is tried on as many as of all else,
unless it would hold more than that for its backward."""

SHARE = 0.4
"""Of a GPU's memory that is free beside a walk's vectors, what an evaluation may take: a recording
keeps its own, beside what others need for a while."""
SAMPLE = 32
"""Examples on which the memory that one takes is measured."""
VECTORS_BESIDE = 100
"""Vectors of the size of theta that a walk with the default settings may hold."""

BY_HAND = {"cpu", "cuda"}
"""Devices on which networks were differentiated by hand."""

ROUNDS = 3
HANDING_OVER = 2e-4
"""Seconds that it costs to spread an evaluation over threads, on a busy machine."""

CLEARLY = 0.9
"""Another size than the usual one has to take less than this share of its time: were it to win by
chance, runs of the same problem would differ in their last bits."""

_measured: dict[tuple[Any, ...], int] = {}
_numbers: MutableMapping[Any, int] = WeakKeyDictionary()
_next = itertools.count()


def choose(
    network: FlatNetwork,
    chunks: Chunks,
    loss: Loss,
    precision: str = "exact",
    ranks: Ranks | None = None,
) -> Evaluation:
    """The fastest way to evaluate: `ByHand` for plain networks, else `Autograd`, with rounded
    gradients where these are asked for, recorded where a device can; all of it on each of several
    ranks."""
    if ranks is not None and ranks.count > 1:
        return Distributed(choose(network, chunks, loss, precision), ranks)
    strict = _in_full(network, chunks, loss)
    exact = precision == "exact"
    evaluation = strict if exact else Autograd(network, chunks, loss, precision)
    if records(network.device) and chunks.kept:
        evaluation = Recorded(evaluation, network.device)
    return evaluation if exact else Reduced(strict, evaluation)


def rounded(evaluation: Evaluation) -> Evaluation:
    """The same with its loss computed as its gradients are."""
    if isinstance(evaluation, Distributed):
        return Distributed(rounded(evaluation.other), evaluation.ranks)
    return evaluation.rounded if isinstance(evaluation, Reduced) else evaluation


def recording(evaluation: Evaluation | None) -> Recorded | None:
    """The recording that an evaluation replays, if it has one."""
    if isinstance(evaluation, Distributed):
        return recording(evaluation.other)
    found = evaluation.rounded if isinstance(evaluation, Reduced) else evaluation
    return found if isinstance(found, Recorded) else None


def _in_full(network: FlatNetwork, chunks: Chunks, loss: Loss) -> ByHand | Autograd:
    if network.device.type == "cpu":
        keep_freed_memory()
    known = network.device.type in BY_HAND and not isinstance(loss, ModelLoss)
    parts = plain(network.model) if known else None
    if parts is not None and chunks.kept and all(isinstance(c.inputs, Tensor) for c in chunks):
        try:
            return ByHand(network, parts, chunks, loss)
        except ValueError:  # autograd says what does not fit, or is as fast
            pass
    return Autograd(network, chunks, loss)


def measured_size(network: FlatNetwork, chunks: Chunks, loss: Loss) -> int | None:
    """Examples in a chunk with which the gradient takes the least CPU time on this machine at the
    point loaded, measured once a process for problems of one kind; None: nothing to choose from."""
    if not chunks.cuttable:
        return None
    if network.device.type == "cuda":
        return _fitting(network, chunks, loss)
    first = max(chunks, key=lambda chunk: chunk.examples)
    if not isinstance(first.inputs, Tensor):
        return None
    images = first.inputs.ndim == 4
    kind = (
        repr(network.model) if isinstance(network.model, nn.Module) else _number(network.model),
        repr(loss) if isinstance(loss, NamedLoss) else _number(loss),
        network.dtype,
        tuple(first.inputs.shape[1:]),
        (first.examples, chunks.examples),
        torch.get_num_threads(),
    )
    if kind in _measured:
        return _measured[kind]
    usual, least, most = first.examples, *(IMAGES if images else VECTORS)
    evaluation = choose(network, chunks, loss)
    if isinstance(evaluation, Autograd):
        if not images:
            return None
        if chunks.longest > most:
            each = _bytes_each(network, evaluation, first)
            most = max(most, min(VECTORS[1], MOST_BYTES // each))
    halves = {math.ceil(chunks.longest / 2**k) for k in range(chunks.longest.bit_length())}
    sizes = sorted(size for size in halves if least <= size <= most and size != usual)
    if not sizes:
        return None
    with random_state_kept():
        seconds = {size: _seconds(network, chunks, loss, size) for size in (usual, *sizes)}
    fastest = min(seconds, key=lambda size: seconds[size])
    clear = seconds[fastest] < CLEARLY * seconds[usual]
    return _measured.setdefault(kind, fastest if clear else usual)


def _fitting(network: FlatNetwork, chunks: Chunks, loss: Loss) -> int:
    """Examples in a chunk on a GPU: as many as its memory allows, since each chunk costs the time
    to launch its kernels. By the card's whole memory, so that the bits depend on nothing else."""
    vectors = VECTORS_BESIDE * network.size * network.dtype.itemsize
    whole = torch.cuda.get_device_properties(network.device).total_memory
    return _equal_parts(network, chunks, loss, SHARE * max(0, whole - vectors))


def fitting_now(network: FlatNetwork, chunks: Chunks, loss: Loss) -> int:
    """Examples in a chunk for which there is memory now, as far as a device tells."""
    if network.device.type != "cuda":
        return max(1, chunks.largest // 2)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(network.device)[0]
    return _equal_parts(network, chunks, loss, 0.8 * free)


def _equal_parts(network: FlatNetwork, chunks: Chunks, loss: Loss, most_bytes: float) -> int:
    """The size of as few equal chunks as need no more memory than that each."""
    first = max(chunks, key=lambda chunk: chunk.examples).first(SAMPLE)
    each = 2 * _bytes_each(network, Autograd(network, chunks, loss), first)
    by_hand = _in_full(network, chunks.sample(SAMPLE), loss) if chunks.kept else None
    if isinstance(by_hand, ByHand):
        each = max(each, by_hand.room // first.examples)
    most, longest = max(1, int(most_bytes) // each), chunks.longest
    return math.ceil(longest / math.ceil(longest / most))


def _number(function: Any) -> int:
    """What stands for a function in a key: unlike its id, never that of another one after it."""
    try:
        return _numbers.setdefault(function, next(_next))
    except TypeError:  # it has no hash or cannot be referred to weakly, so is measured each time
        return next(_next)


def saved_bytes(forward: Callable[[], Any]) -> dict[int, int]:
    """Bytes of the storages that autograd keeps for the backward of a function, by address."""
    held: dict[int, int] = {}

    kept: list[Tensor] = []  # so that no address is used twice

    def count(tensor: Tensor) -> Tensor:  # were it to give it as it is, that would hold its graph
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor.detach())
        return kept[-1]  # for a model that differentiates by its inputs

    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = forward()
    del outputs
    return held


def _bytes_each(network: FlatNetwork, evaluation: Autograd, chunk: Chunk) -> int:
    """Memory that the backward of an example takes, beside the parameters."""
    try:
        with random_state_kept():
            held = saved_bytes(lambda: evaluation.forward(chunk))
    except (InputError, RuntimeError):  # such as torch.func within a model, which bars the hooks
        return MOST_BYTES
    held.pop(network.leaves[0].untyped_storage().data_ptr(), None)
    return max(1, sum(held.values()) // chunk.examples)


def _seconds(network: FlatNetwork, chunks: Chunks, loss: Loss, size: int) -> float:
    """What an evaluation takes in chunks of a size, foretold from one chunk."""
    evaluation, theta = choose(network, chunks.sample(size), loss), flatten(network.leaves)
    taken: list[float] = []
    for _ in range(ROUNDS + 1):  # the first fills caches
        began = time.thread_time()
        evaluation.loss_and_grad(theta)
        taken.append(time.thread_time() - began)
    each, count = min(taken[1:]), chunks.examples / size
    threads = evaluation.threads(math.ceil(count)) if isinstance(evaluation, ByHand) else 1
    return each * count if threads == 1 else each * math.ceil(count / threads) + HANDING_OVER
