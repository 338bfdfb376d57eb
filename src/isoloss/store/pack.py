"""Any state made of dataclasses, tensors, arrays, enums and numbers, as JSON and named tensors.

What comes back computes the same bits: tensors keep their strides and what memory they share,
numbers their type. Reading makes no object but of classes that the reader names.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

Tree = Any
"""What JSON can hold."""


def pack(value: object) -> tuple[Tree, dict[str, Tensor]]:
    """Take a value apart.

    Args:
        value: Made of dataclasses, enums, tensors, arrays, numbers, strings, None, lists, tuples
            and dicts with keys of strings.

    Returns:
        What JSON can hold, and the storages of the tensors as bytes, by name.

    Raises:
        TypeError: There is something else in it.
    """
    packer = _Packer()
    return packer.pack(value), packer.storages


def unpack(tree: Tree, storages: Mapping[str, Tensor], classes: Iterable[type]) -> Any:
    """Put a value together again.

    Args:
        tree: From `pack`.
        storages: From `pack`.
        classes: The classes that may be made, and those that their fields' types name.

    Returns:
        The value.

    Raises:
        ValueError: It was not made by `pack`, or holds a class that is not allowed or has changed.
    """
    try:
        return _Unpacker(storages, named_classes(classes)).unpack(tree)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a packed state: {type(error).__name__}: {error}") from error


def named_classes(classes: Iterable[type]) -> dict[str, type]:
    """Dataclasses and enums by name: those given, and those that their fields' types name."""
    found: dict[str, type] = {}
    waiting: list[Any] = list(classes)
    while waiting:
        kind = waiting.pop()
        waiting.extend(typing.get_args(kind))
        if not isinstance(kind, type) or found.get(kind.__name__) is kind:
            continue
        if issubclass(kind, enum.Enum):
            found[kind.__name__] = kind
        elif dataclasses.is_dataclass(kind):
            found[kind.__name__] = kind
            waiting.extend(typing.get_type_hints(kind).values())
    return found


class _Packer:
    def __init__(self) -> None:
        self.storages: dict[str, Tensor] = {}
        self._names: dict[tuple[int, int, str], str] = {}  # of storages, by where they are
        self._objects: dict[int, int] = {}  # numbers of dataclass instances, by id
        self._alive: list[object] = []  # so that no id or address is used twice

    def pack(self, value: Any) -> Tree:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, enum.Enum):
            return {"enum": type(value).__name__, "value": value.value}
        if type(value) is Tensor:
            return {"tensor": self._tensor(value)}
        if isinstance(value, np.ndarray):
            return {"array": self._tensor(torch.from_numpy(value.copy(order="K")))}
        if isinstance(value, np.generic):
            return {"scalar": value.dtype.name, "value": self.pack(value.item())}
        if type(value) is list:
            return [self.pack(item) for item in value]
        if type(value) is tuple:
            return {"tuple": [self.pack(item) for item in value]}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {key: self.pack(item) for key, item in value.items()}}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._object(value)
        raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")

    def _object(self, value: Any) -> Tree:
        if id(value) in self._objects:
            return {"same": self._objects[id(value)]}
        fields = {
            field.name: self.pack(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        self._objects[id(value)] = len(self._objects)
        self._alive.append(value)
        return {"class": type(value).__name__, "fields": fields}

    def _tensor(self, tensor: Tensor) -> Tree:
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        place = (storage.data_ptr(), storage.nbytes(), str(tensor.device))
        if place not in self._names or storage.nbytes() == 0:
            name = f"storage-{len(self.storages)}"
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self.storages[name] = whole
            self._names[place] = name
            self._alive.append(storage)
        return {
            "storage": self._names[place],
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": str(tensor.device),
            "offset": tensor.storage_offset(),
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
        }


class _Unpacker:
    def __init__(self, storages: Mapping[str, Tensor], classes: Mapping[str, type]) -> None:
        self._storages = storages
        self._classes = classes
        self._placed: dict[tuple[str, str], Tensor] = {}
        self._objects: list[Any] = []

    def unpack(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.unpack(item) for item in cast("list[Any]", tree)]
        if not isinstance(tree, dict):
            return tree
        node = cast("dict[str, Any]", tree)
        match next(iter(node)):
            case "float":
                return float(node["float"])
            case "enum":
                return self._class(node["enum"], enum.Enum)(node["value"])
            case "tensor":
                return self._tensor(node["tensor"])
            case "array":
                return self._tensor(node["array"]).numpy()
            case "scalar":
                return np.dtype(node["scalar"]).type(self.unpack(node["value"]))
            case "class":
                return self._object(node)
            case "same":
                return self._objects[node["same"]]
            case "tuple":
                return tuple(self.unpack(item) for item in node["tuple"])
            case "dict":
                return {key: self.unpack(item) for key, item in node["dict"].items()}
            case other:
                raise ValueError(f"not a packed state: {other!r}")

    def _class(self, name: str, base: type = object) -> Any:
        kind = self._classes.get(name)
        if kind is None or not issubclass(kind, base):
            raise ValueError(f"not a packed state: {name!r} is not a class it may hold")
        return kind

    def _object(self, node: dict[str, Any]) -> Any:
        kind = self._class(node["class"])
        fields = {name: self.unpack(item) for name, item in node["fields"].items()}
        if {field.name for field in dataclasses.fields(kind)} != set(fields):
            raise ValueError(f"{kind.__name__} has other fields in this version of isoloss")
        made = kind(**fields)
        self._objects.append(made)
        return made

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        dtype = getattr(torch, node["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"not a packed state: {node['dtype']!r} is no type of numbers")
        where = (node["storage"], node["device"])
        if where not in self._placed:
            # a clone: memory from torch is aligned, which some products' last bits depend on
            self._placed[where] = self._storages[where[0]].clone().to(where[1])
        storage = self._placed[where].untyped_storage()
        shape, stride, offset = node["shape"], node["stride"], node["offset"]
        reach = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
        negative = min([offset, *shape, *stride]) < 0
        if 0 not in shape and (negative or reach * dtype.itemsize > storage.nbytes()):
            raise ValueError("not a packed state: a tensor reaches out of its storage")
        empty = torch.empty(0, dtype=dtype, device=where[1])
        return empty.set_(storage, offset, shape, stride)
