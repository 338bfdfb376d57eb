"""Which module of a model makes two evaluations differ, found by watching what each gives."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from isoloss.data import Chunk, leaves
from isoloss.problem import Problem, inside


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        name: Of the module, for people.
        path: Of the module within the model.
        inputs: Tensors it was given.
        outputs: Tensors it gave.
    """

    name: str
    path: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def named(path: str, module: nn.Module | None) -> str:
    """A module for people: `layers.1 (Dropout)`."""
    return f"{path or 'the model'} ({type(module).__name__})"


def changing(problem: Problem, chunk: Chunk) -> list[str]:
    """The modules whose outputs differ between two evaluations of a chunk."""
    model = inside(problem).network.model
    calls, again = (_calls(problem, chunk) for _ in range(2))
    random = [
        one
        for one, two in zip(calls, again, strict=False)
        if one.path == two.path
        and _equal(one.inputs, two.inputs)
        and not _equal(one.outputs, two.outputs)
    ]
    innermost = _innermost(random)
    if not innermost or not isinstance(model, nn.Module):
        return innermost
    dropping = [
        named(path, module)
        for path, module in model.named_modules()
        if module.training and isinstance(module, _DropoutNd) and module.p > 0
    ]
    return list(dict.fromkeys([*innermost, *dropping]))


def mixing(problem: Problem, chunk: Chunk, few: Chunk, rows: Tensor, relative: float) -> list[str]:
    """The modules whose outputs for an example depend on the examples beside it."""

    def agree(whole: list[Tensor], part: list[Tensor]) -> bool | None:
        known = None
        for a, b in zip(whole, part, strict=False):
            if a.shape[:1] != (chunk.examples,) or b.shape[:1] != (few.examples,):
                continue
            a = a[rows]
            if a.shape != b.shape:
                return False
            if bool(((a - b).abs() > relative * a.abs().max()).any()):
                return False
            known = True
        return known

    together, alone = _calls(problem, chunk), _calls(problem, few)
    return _innermost(
        [
            one
            for one, two in zip(together, alone, strict=False)
            if agree(one.inputs, two.inputs) is True and agree(one.outputs, two.outputs) is False
        ]
    )


def _innermost(calls: list[Call]) -> list[str]:
    """Names of the modules called, without those that only contain another of them."""
    paths = {call.path for call in calls}
    return list(
        dict.fromkeys(
            call.name
            for call in calls
            if not any(
                other != call.path and (other.startswith(f"{call.path}.") or call.path == "")
                for other in paths
            )
        )
    )


def _calls(problem: Problem, chunk: Chunk) -> list[Call]:
    with torch.no_grad(), _watched(problem) as calls:
        outputs = inside(problem).network(chunk.inputs)
    if not isinstance(inside(problem).network.model, nn.Module):
        calls.append(Call("the model function", "", [], _tensors(outputs)))
    return calls


@contextmanager
def _watched(problem: Problem) -> Generator[list[Call]]:
    calls: list[Call] = []
    model = inside(problem).network.model
    handles: list[Any] = []
    if isinstance(model, nn.Module):
        for path, module in model.named_modules():

            def hook(
                module: nn.Module, args: Any, kwargs: Any, outputs: Any, path: str = path
            ) -> None:
                given = _tensors([args, kwargs])
                calls.append(Call(named(path, module), path, given, _tensors(outputs)))

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _tensors(tree: Any) -> list[Tensor]:
    return [tensor.detach().clone() for _, tensor in leaves(tree, "")]


def _equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True)
    )
