"""What is said where a device has too little memory for an evaluation, or fails in it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from isoloss.errors import DeviceError, InputError, one_line

ALLOCATORS = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "MPS backend out of memory")
"""What torch says where it has no error of its own for memory that ran out."""
FAILURES = (RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError)
"""What a model, or another function that a user wrote, raises on what it does not take."""


@contextmanager
def explained(sentence: Callable[[Exception], str]) -> Generator[None]:
    """Say in a sentence what a user's function raises; the device's errors stay what they are."""
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:
        if of_the_device(error):
            raise
        raise InputError(sentence(error)) from error


@contextmanager
def told(device: torch.device, examples: int, fitting: Callable[[], int]) -> Generator[None]:
    """Say in a sentence that an evaluation of so many examples at once does not fit, or that the
    device has failed."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            said = one_line(error).partition(ALLOCATORS[0])[2] or one_line(error)
        elif "CUDA error" in str(error):
            raise DeviceError(
                f"{device} failed in an evaluation ({one_line(error)}); start Python anew to use "
                f"it again, and continue from the last checkpoint"
            ) from error
        else:
            raise
    else:
        return
    # here, where the error no longer holds what did not fit
    size = fitting()
    remedy = f"give chunk_size={size} to Problem"
    if size >= examples or examples == 1:
        remedy = "free some of it, or give a smaller model or a device with more"
    raise DeviceError(
        f"{device} has too little memory to evaluate {examples} examples at once ({said}); {remedy}"
    )


def of_the_device(error: Exception) -> bool:
    """Whether an error is the device's, not the model's."""
    return out_of_memory(error) or "CUDA error" in str(error)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    own = isinstance(error, torch.OutOfMemoryError)
    return own or (isinstance(error, RuntimeError) and any(a in str(error) for a in ALLOCATORS))
