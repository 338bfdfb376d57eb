"""Parameters and buffers of one model found by name in another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from isoloss.errors import InputError
from isoloss.flat import (
    FlatNetwork,
    Layout,
    Model,
    Shapes,
    coarse,
    dense,
    digest,
    fixed,
    same,
    trainable,
)

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What `DataParallel`, `torch.compile` and others put into the names of what they wrap."""

COUNTER = "n_averaged"
"""The buffer that torch's `AveragedModel` has beside those of what it averages."""


def load_into(
    model: nn.Module,
    theta: Tensor,
    shapes: Shapes,
    buffers: Mapping[str, Tensor] | None = None,
    frozen: Mapping[str, str] | None = None,
) -> None:
    """Write a flat vector into a model's trainable parameters, and buffers, in place. They are
    found by name, `frozen` ones, whose digests must be the same, too; a wrapper or a prefix that
    one of two models has is no difference."""
    named, held = trainable(model, None), dict(model.named_buffers())
    if buffers is not None and (COUNTER in buffers) != (COUNTER in held):
        buffers = {name: buffer for name, buffer in buffers.items() if name != COUNTER}
        held.pop(COUNTER, None)
    beside = {name: p for name, p in model.named_parameters() if name not in named}
    wanted, there = [*shapes, *(buffers or {}), *(frozen or {})], [*named]
    there += held if buffers is not None else ()
    there += beside if frozen is not None else ()
    places = matched(wanted, there) or dict(zip(wanted, wanted, strict=True))
    _check_same("trainable parameters", shapes, named, places)
    if buffers is not None:
        given = {name: tuple(buffer.shape) for name, buffer in buffers.items()}
        _check_same("buffers", given, held, places)
    for name, parameter in named.items():
        if coarse(parameter) and parameter.dtype != theta.dtype:
            raise InputError(
                f"the model's parameter {name!r} is {parameter.dtype}, to which a point in "
                f"{theta.dtype} would be rounded, off the level; call model.float() first"
            )
    for name, known in (frozen or {}).items():
        parameter = beside.get(places[name])
        if parameter is not None and coarse(parameter):
            raise InputError(
                f"the model's frozen parameter {places[name]!r} is {parameter.dtype}, in which the "
                f"model has another loss than the one that was held; call model.float() first"
            )
        if parameter is None or digest(parameter.to(theta)) != known:
            raise InputError(
                f"the frozen parameter {places[name]!r} of the model is not the one of the walk, "
                f"whose points would have another loss with it; load that model's weights first"
            )
    tensors = [*named.values(), *held.values()]
    with torch.inference_mode(any(t.is_inference() for t in tensors)), torch.no_grad():
        for name, piece in Layout(shapes).named(theta).items():
            named[places[name]].copy_(piece)
        for name, buffer in (buffers or {}).items():
            _write_buffer(model, places[name], held[places[name]], buffer)


def _write_buffer(model: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    if old.layout == torch.strided:
        old.copy_(new)
    else:  # which cannot be written in place
        owner, _, key = name.rpartition(".")
        made = dense(new).to(old.device, old.dtype).to_sparse(layout=old.layout)
        setattr(model.get_submodule(owner), key, made)


def matched(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str] | None:
    """For each name of one model that in another; None where they are not the same names."""
    ours, theirs = list(ours), list(theirs)
    mine, others = ours, theirs
    for bare in (list[str], _unwrapped, _rooted):
        mine, others = bare(mine), bare(others)
        places = dict(zip(others, theirs, strict=True))
        if set(mine) == set(others) and len(set(mine)) == len(mine) == len(others):
            return {name: places[form] for name, form in zip(ours, mine, strict=True)}
    return None


def _unwrapped(names: list[str]) -> list[str]:
    return [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]


def _rooted(names: list[str]) -> list[str]:
    """Without the modules that are around all of them."""
    parts, around = [name.split(".") for name in names], 0
    shortest = min((len(each) for each in parts), default=1)
    while around < shortest - 1 and len({each[around] for each in parts}) == 1:
        around += 1
    return [".".join(each[around:]) for each in parts]


def _check_same(
    what: str, wanted: Shapes, there: Mapping[str, Tensor], places: Mapping[str, str]
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in there.items()}
    expected = {places[name]: tuple(shape) for name, shape in wanted.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            walked, given = expected.get(name, "none"), found.get(name, "none")
            once = ", or call it once if forward makes them" if what == "buffers" else ""
            raise InputError(
                f"the model's {what} are not those of the walk: {name!r} has there the shape "
                f"{walked}, here {given}; give a model of the same architecture{once}"
            )


def check_same_network(what: str, other: FlatNetwork, walked: FlatNetwork) -> None:
    """Insist on a problem of the network that is walked.

    Its parameters have the same names and shapes in the same order, its buffers and frozen
    parameters the same values. Of functions, whose names mean nothing, the size decides.
    """
    ours, theirs = walked.layout.shapes, other.layout.shapes
    places = matched(ours, theirs)
    modules = all(isinstance(one.model, nn.Module) for one in (walked, other))
    alike = list(ours.values()) == list(theirs.values()) or not modules
    ordered = list((places or {}).values()) == list(theirs) or not modules
    if other.size != walked.size or not alike or not ordered:
        pairs = itertools.zip_longest(theirs.items(), ours.items(), fillvalue=("nothing", ()))
        (name, shape), (mine, wanted) = next((a, b) for a, b in pairs if a != b)
        raise InputError(
            f"{what} has other parameters than the problem that is walked, {name!r} of shape "
            f"{shape} where that has {mine!r} of shape {wanted}; make it from the same model"
        )
    model = walked.model
    kept, beside = fixed(model), fixed(other.model)
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    for name, theirs_name in (matched(kept, beside) or {}).items():
        mine, found = kept[name], beside[theirs_name]
        if mine.shape != found.shape and name in buffers:
            continue  # some are made by forward, for inputs of a length
        if mine.shape != found.shape or not same(mine, found):
            raise InputError(
                f"{what} has another {name!r} than the problem that is walked: the model has "
                f"changed between the two, or they are two models; make both from the same model, "
                f"after its training"
            )


def state_keys(model: Model, names: Mapping[str, Any]) -> dict[str, str]:
    """For each key of `model.state_dict()`, the name of its tensor in `named_parameters()`: another
    where it is used in several places. A function has the names alone."""
    if not isinstance(model, nn.Module):
        return {name: name for name in names}
    first = {id(t): n for n, t in [*model.named_buffers(), *model.named_parameters()]}
    kept: dict[str, Any] = model.state_dict(keep_vars=True)
    return {key: first[id(t)] for key, t in kept.items() if id(t) in first}


def functional(model: nn.Module) -> Callable[..., Any]:
    """The model as a function of (parameters by name, arguments).

    A parameter used in several places is given once. So is a module there under several names, in
    which `functional_call`, left to itself, would leave the tensors that it was given.
    """
    slots: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(
            prefix, recurse=False, remove_duplicate=False
        ):
            slots.setdefault(id(parameter), []).append(key)
    places = {keys[0]: keys for keys in slots.values()}

    def call(parameters: Mapping[str, Tensor], *args: Any) -> Any:
        named = {key: t for name, t in parameters.items() for key in places[name]}
        return functional_call(model, named, args, tie_weights=False)

    return call
