"""A training set, as chunks of examples in one fixed order."""

from isoloss.data.chunks import Chunk, Chunks
from isoloss.data.reading import is_opaque, leaves, map_tensors, random_state_kept

__all__ = ["Chunk", "Chunks", "is_opaque", "leaves", "map_tensors", "random_state_kept"]
