"""The C library keeps freed memory instead of handing it back after every intermediate."""

from __future__ import annotations

import functools

import torch

LARGEST_THRESHOLD = 32 * 2**20
"""Of glibc, on 64-bit machines: the size of a block from which on it always asks the system."""


@functools.cache
def keep_freed_memory() -> None:
    """Let large blocks be used again, once a process.

    By default glibc asks the system for every block above 128 kB and gives it back at once, so that
    each intermediate of a convolution is mapped and filled with zeros anew: some 50,000 page faults
    an evaluation of MNIST_CONV. It raises that threshold to the size of the largest such block
    freed so far, and what it keeps to twice that (mallopt(3), M_MMAP_THRESHOLD); so one block
    of nearly the largest size is taken and freed. Other C libraries are not affected.
    """
    block = torch.empty(LARGEST_THRESHOLD - 2**16, dtype=torch.uint8)
    del block
