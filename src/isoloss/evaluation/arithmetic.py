"""Which of torch's kernels an evaluation may use, and how many of its threads."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def reproducible(device: torch.device) -> AbstractContextManager[None]:
    """Kernels that give the same bits each time, to the accuracy of their type.

    On CUDA, cuDNN else picks convolutions by timing them and rounds their float32 inputs to ten
    bits (TF32), too coarse to hold a level.

    Args:
        device: Where the evaluation is.

    Returns:
        A context to evaluate in.
    """
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


@contextmanager
def twice_differentiable(device: torch.device) -> Generator[None]:
    """Kernels that can be differentiated twice: attention and, on CUDA, recurrent layers in plain.

    Args:
        device: Where the evaluation is.

    Yields:
        Nothing; differentiate within.
    """
    with sdpa_kernel(SDPBackend.MATH):
        if device.type != "cuda":
            yield
            return
        with torch.backends.cudnn.flags(enabled=False):
            yield


@contextmanager
def one_thread() -> Generator[None]:
    """No threads of torch's own inside: they wait for one another on a busy machine.

    Yields:
        Nothing; the number of threads is put back at the end.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def channels_last_is_safe(model: object) -> bool:
    """Whether images may be laid out with their channels last.

    Torch (2.13, CPU) writes past the end of memory in the gradient by the weights of a convolution
    of 1x1, a stride, and fewer than eight input channels in that layout.

    Args:
        model: A module; of anything else nothing is known.

    Returns:
        False where such a convolution is among its modules.
    """
    return not isinstance(model, nn.Module) or not any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < 8
        for module in model.modules()
    )
