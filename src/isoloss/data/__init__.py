"""A training set, as chunks of examples in one fixed order."""

from isoloss.data.chunks import Chunk, Chunks
from isoloss.data.reading import random_state_kept
from isoloss.data.structure import leaves, map_tensors

__all__ = ["Chunk", "Chunks", "leaves", "map_tensors", "random_state_kept"]
