"""A graph of kernels on the CPU: what torch did is recorded, and done again on the same memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoloss._kernels.capture import WARM_UPS, UncapturableError

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""What CUDA cannot record, as the CPU needs its result."""


class CpuGraph(TorchDispatchMode):
    """As a CUDA graph, it knows kernels and addresses, and nothing that Python computed.

    It has no memory to write to but what the recording had: a tensor that is bound anew, or a
    number that Python computes anew, stays in a replay what it was.
    """

    def __init__(self, *_: object) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def record(self, function: Any) -> Any:
        for _ in range(WARM_UPS):
            function()
        with self:
            return function()

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # kernels alone
            for func, args, kwargs, found in self._done:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old is not new:
                        old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise UncapturableError(f"{func} waits for the device")
        found = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            self._done.append((func, args, kwargs or {}, found))
        return found
