"""Several processes that hold one problem: the only place that talks to a process group."""

from __future__ import annotations

import json
import math
import re
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch import distributed as dist

from isoloss.errors import InputError, IsolossError, RankError, kind, one_line, said
from isoloss.evaluation.ranks import Ranks

WIDTH = 64
"""Numbers of an exchange; all have one length, so that ranks that went apart find out."""
HEAD = 2
"""Of these: whether this rank has failed, and a digest of what it does."""
CPU = torch.device("cpu")
BEFORE_2_13 = "all_gather_into_tensor"
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, BEFORE_2_13, None))


class GroupRanks(Ranks):
    """The processes of a `torch.distributed` group.

    Each exchange begins with a few numbers of each rank, in one call: whether one has failed, and
    what each is about to do. Only where all are at the same place do vectors follow, so that ranks
    that went apart, or fail, end in a sentence.

    Args:
        group: The group; all of its ranks make the same calls in the same order.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.number, self.count = dist.get_rank(group), dist.get_world_size(group)
        self._backends = _backends(dist.get_backend_config(group))
        self._here = CPU  # from where numbers go
        if "cpu" not in self._backends:  # as nccl
            only = next(iter(self._backends))
            self._here = torch.device(only, torch.get_device_module(only).current_device())
        self._wire = self._here  # from where vectors go
        self._mark = 0
        self._over = False  # whether the last exchange ended in an error, which all know of

    def __reduce__(self) -> NoReturn:
        """A group belongs to its processes."""
        raise InputError(
            "a problem of a process group cannot be copied or pickled; make it in each process"
        )

    def clock(self) -> float:
        """Seconds of the first rank."""
        return self.numbers(lambda: [time.perf_counter()])[0][0]

    def numbers(self, work: Callable[[], Sequence[float]]) -> list[Sequence[float]]:
        """Some numbers of each rank."""
        given, error = [], None
        try:
            given = list(work())
        except Exception as failed:
            error = failed
        return self._exchange("numbers", given, error)

    def gather(self, value: Any) -> list[Any]:
        """A value of each rank that JSON can hold."""
        return [json.loads(text) for text in self._texts(json.dumps(value))]

    def sums(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The sums over the ranks in their order, float64."""
        mine = torch.cat([tensor.double().flatten() for tensor in tensors])
        found: list[float] = []
        for block in mine.split(WIDTH - HEAD):
            rows = self._exchange("sums", block.tolist())
            found += [sum(column) for column in zip(*rows, strict=True)]
        whole = torch.tensor(found, dtype=torch.float64, device=mine.device)
        pieces = whole.split([tensor.numel() for tensor in tensors])
        return [p.reshape(t.shape) for p, t in zip(pieces, tensors, strict=True)]

    def add(
        self, theta: Tensor, work: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A number and a flat vector computed at theta, summed over the ranks in their order.

        Each rank sums one part of the vector, in float64: the same bits everywhere, whatever the
        backend, for the traffic of a ring, twice (1 - 1 / count) vectors.
        """
        value = vector = error = None
        try:
            value, vector = work()
            self.note(theta)
        except Exception as failed:
            error = failed
        rows = self._exchange("add", [math.nan if value is None else value.item()], error)
        value, vector = cast("Tensor", value), cast("Tensor", vector)
        total = value.new_tensor(sum(row[0] for row in rows))
        size, length = len(vector), self._length(len(vector))
        sent = torch.zeros(length * self.count, dtype=vector.dtype, device=self._wire)
        sent[:size] = vector
        found = torch.empty_like(sent)
        self._call(dist.all_to_all_single, found, sent)
        part = found.view(self.count, length).sum(0, dtype=torch.float64).to(vector.dtype)
        self._call(_all_gather, found, part)
        return total, found[:size].to(vector.device)

    def cut(self, vector: Tensor) -> Tensor:
        """The part of a flat vector that this rank holds."""
        length = self._length(len(vector))
        return vector[length * self.number : length * (self.number + 1)]

    def whole(self, part: Tensor, size: int) -> Tensor:
        """The flat vector of which each rank holds a part."""
        self._exchange("whole", [])
        length = self._length(size)
        mine = torch.zeros(length, dtype=part.dtype, device=self._wire)
        mine[: len(part)] = part
        found = mine.new_empty(length * self.count)
        self._call(_all_gather, found, mine)
        return found[:size].to(part.device)

    def note(self, values: Tensor | Sequence[float]) -> None:
        """Say what the next exchange goes by, which has to be the same on all ranks."""
        tensor = isinstance(values, Tensor)
        content = _checksum(values) if tensor else struct.pack(f"{len(values)}d", *values)
        self._mark = zlib.crc32(content, self._mark)

    def carry(self, device: torch.device) -> None:
        """Let vectors of a device go from there where the backend can; else through the CPU."""
        backend = self._backends.get(device.type, "")
        if backend not in ("", "gloo"):
            self._wire = device
        elif "cpu" not in self._backends:
            known = " and ".join(f"{one} on {kind}" for kind, one in self._backends.items())
            raise InputError(
                f"the group's backend is {known}, and the problem is on {str(device)!r}; give "
                f"device={self._here.type!r} to Problem, or init_process_group('gloo')"
            )

    @contextmanager
    def interrupts(self) -> Generator[Callable[[], bool]]:
        """Ctrl-C is noted, so that all ranks end at one place; the second one raises as ever."""
        pressed = False

        def press(_number: int, _frame: object) -> None:
            nonlocal pressed
            if pressed:
                raise KeyboardInterrupt
            pressed = True

        if threading.current_thread() is not threading.main_thread():
            yield lambda: False
            return
        before = signal.signal(signal.SIGINT, press)
        try:
            yield lambda: pressed
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def tell(self, error: Exception | None) -> None:
        """Say to the others how it went, and hear it of them; what they know, not again."""
        if error is None or not self._over:
            self._exchange("together", [], error)

    def _length(self, size: int) -> int:
        """Entries of a part, but for the last ones."""
        return -(-size // self.count)

    def _exchange(
        self, what: str, given: Sequence[float], error: Exception | None = None
    ) -> list[Sequence[float]]:
        """The numbers of all ranks; raises where one has failed or does something else."""
        mark, self._mark = zlib.crc32(f"{what} {len(given)}".encode(), self._mark), 0
        self._over = False
        row = [float(error is not None), float(mark), *given]
        row += [0.0] * (WIDTH - len(row))
        mine = torch.tensor(row, dtype=torch.float64, device=self._here)
        found = mine.new_empty(self.count * WIDTH)
        self._call(_all_gather, found, mine)
        rows: list[list[float]] = found.view(self.count, WIDTH).tolist()
        if any(row[0] for row in rows):
            self._fail([k for k, row in enumerate(rows) if row[0]], error)
        apart = [k for k, row in enumerate(rows) if row[1] != rows[0][1]]
        if apart:
            self._over = True
            raise RankError(
                f"rank {apart[0]} of {self.count} no longer does what rank 0 does: it was given "
                f"something else, left the walk, or computes other bits (another processor or "
                f"build, or something random in the model or the regularizer); give all ranks the "
                f"same but for the examples"
            )
        return [row[HEAD : HEAD + len(given)] for row in rows]

    def _fail(self, failed: list[int], error: Exception | None) -> NoReturn:
        """Raise on all ranks: isoloss's own errors as they are, else one that says who failed."""
        own = isinstance(error, IsolossError)
        name, text = type(error).__name__ if own else "", said(error) if error else ""
        found = [
            json.loads(one) for one in self._texts(json.dumps([name, str(error) if own else text]))
        ]
        self._over = True
        first = failed[0]
        name, text = found[first]
        if error is not None and not own:
            raise error
        known = {one.__name__: one for one in _all_errors(IsolossError)}
        if name not in known:
            raise RankError(
                f"rank {first} of {self.count} failed ({text}); correct that, and start all of "
                f"them again"
            )
        where = "" if all(one == found[first] for one in found) else f"on rank {first}: "
        raise known[name](where + text) from error

    def _texts(self, text: str) -> list[str]:
        content = text.encode()
        lengths = [int(row[0]) for row in self._exchange("texts", [float(len(content))])]
        mine = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
        mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        found = torch.empty(self.count * len(mine), dtype=torch.uint8, device=self._here)
        self._call(_all_gather, found, mine.to(self._here))
        rows = found.view(self.count, -1).cpu().numpy()
        return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]

    def _call(self, function: Callable[..., Any], *tensors: Tensor) -> None:
        try:
            function(*tensors, group=self._group)
        except RuntimeError as error:
            self._over = True
            raise RankError(
                f"another process of the group has ended or did not answer in time, as rank "
                f"{self.number} of {self.count} saw ({_cause(error)}); start all of them again, "
                f"and the walk continues from its checkpoint"
            ) from error


def ranks_of(group: Any) -> Ranks:
    """The ranks of a user's process group; one of a single process needs no exchange."""
    if group is None:
        raise InputError(
            "group is None, as torch.distributed.group.WORLD is before "
            "torch.distributed.init_process_group(); call that first, or leave group out"
        )
    if not dist.is_available():
        raise InputError("this build of torch has no torch.distributed; leave group out")
    other: Any = dist.GroupMember.NON_GROUP_MEMBER  # a number
    if type(group) is type(other) and group == other:
        raise InputError(
            "this process is no member of the group given; make the Problem in its members alone"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise InputError(
            f"group must be a process group such as torch.distributed.group.WORLD, got "
            f"{kind(group)}"
        )
    if not dist.is_initialized():
        raise InputError(
            "the process group is not initialized, or was destroyed; call "
            "torch.distributed.init_process_group() first"
        )
    return Ranks() if dist.get_world_size(group) == 1 else GroupRanks(group)


def _backends(config: str) -> dict[str, str]:
    """The backend for each type of device, from torch's `cpu:gloo,cuda:nccl`."""
    return dict(one.split(":", 1) for one in config.split(","))


def _cause(error: RuntimeError) -> str:
    """What gloo or NCCL says, without the place in its source and what it guesses."""
    return one_line(RuntimeError(re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0]))


def _all_errors(kind: type[IsolossError]) -> list[type[IsolossError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in _all_errors(child))]


def _checksum(vector: Tensor) -> bytes:
    """Bytes that differ where any bit of a vector does, but by a rare chance: sums of its bits as
    whole numbers, in columns, since one of all would often hide roundings up and down."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[vector.element_size()]
    bits = vector.detach().contiguous().view(whole)
    even = len(bits) - len(bits) % WIDTH
    columns = bits[:even].view(-1, WIDTH).sum(0)
    return torch.cat([columns, bits[even:].long()]).cpu().numpy().tobytes()
