"""The parameters of several networks of one architecture in one buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Layout:
    """Where the parameters of a stack of networks are in one flat buffer.

    The buffer goes parameter by parameter, and within each member by member, so that each parameter
    of all members is one contiguous tensor, and one optimizer step serves them all.

    Args:
        shapes: Shape of each parameter by name, in the order of theta.
        members: Number of networks.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], members: int) -> None:
        self.shapes = dict(shapes)
        self.members = members
        self._sizes = [math.prod(shape) for shape in shapes.values()]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Each parameter of all members, shape (members, *shape), as views of the buffer."""
        pieces = buffer.split([self.members * size for size in self._sizes])
        return {
            name: piece.view(self.members, *shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def gather(self, buffer: Tensor) -> Tensor:
        """Copy a buffer to flat vectors, shape (members, parameters)."""
        return torch.cat([view.flatten(1) for view in self.views(buffer).values()], dim=1)

    def scatter(self, thetas: Tensor) -> Tensor:
        """Copy flat vectors, shape (members, parameters), to a new buffer."""
        return torch.cat([piece.flatten() for piece in thetas.split(self._sizes, dim=1)])
