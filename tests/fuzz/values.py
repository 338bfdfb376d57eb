"""Values of every kind that an argument may be by mistake, made anew at each call."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import math
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import isoloss


class Anything:
    """An object that fits nowhere."""


class Unhashable:
    """Equal to nothing, and no key."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError("cannot be compared")


def circle() -> list[Any]:
    """A list that holds itself."""
    made: list[Any] = []
    made.append(made)
    return made


def deep() -> list[Any]:
    """A list in a list in a list, deeper than Python recurses."""
    made: list[Any] = []
    for _ in range(3000):
        made = [made]
    return made


NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, 10**20, -(10**20),
    10**400, -(10**400), 10**5000,
    0.0, -0.0, 0.5, 1e-300, 5e-324, 1e300, -1e300, math.nan, math.inf, -math.inf, 1j, 1 + 0j,
    complex(math.nan, 1), True, False, None, ..., NotImplemented,
    decimal.Decimal("0.5"), decimal.Decimal("NaN"), decimal.Decimal("1e999"),
    fractions.Fraction(1, 3), fractions.Fraction(10**400), range(3),
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "a", "0", "1e905", "inf", "squared_norm", "cross_entropy", "sqp", "IRIS_FF", "run-000",
    "../..", "~", "~nobody", "a\0b", "\ud800", "[/red]", "[bold", "=cmd|' /C calc'!A0",
    "\\input{x}", "x" * 5000, "{0.__class__}", "%s", "\n\n", "é\u202e", b"a", bytearray(3),
    pathlib.Path("/dev/null"), pathlib.Path("/proc/nothing/at all"), pathlib.PurePath("a\0b"),
]  # fmt: skip
MAKERS: list[Callable[[], Any]] = [
    list, dict, set, tuple, object, Anything, Unhashable, circle, deep,
    lambda: [None], lambda: [[]], lambda: [1, 2, 3], lambda: ["a"], lambda: ("a", "b"),
    lambda: (1.0, "l1"), lambda: {"a": 1}, lambda: {1: 2}, lambda: {None: None}, lambda: {"a": []},
    lambda: iter([1, 2]), lambda: (k for k in ()), lambda: frozenset({1}),
    lambda: Anything, lambda: isoloss.L1, lambda: isoloss.Paper, lambda: Exception(),
    lambda: id, lambda: (lambda: 3), lambda: (lambda a, b: 3),
    lambda: (lambda *_: None), lambda: (lambda **_: "x"), lambda: (lambda x: x), lambda: torch,
    lambda: torch.tensor(3.0), lambda: torch.tensor(math.nan), lambda: torch.tensor(2 + 1j),
    lambda: torch.empty(0), lambda: torch.zeros(3), lambda: torch.zeros(17), lambda: torch.ones(6),
    lambda: torch.zeros(6, 2), lambda: torch.zeros(17, dtype=torch.float64),
    lambda: torch.full((17,), 1e30), lambda: torch.full((17,), math.inf), lambda: torch.zeros(1,
    17),
    lambda: torch.zeros(17, dtype=torch.complex64), lambda: torch.zeros(17, dtype=torch.int64),
    lambda: torch.zeros(17, dtype=torch.bool), lambda: torch.zeros(17, dtype=torch.float16),
    lambda: torch.zeros(17, device="meta"), lambda: torch.zeros(17).to_sparse(),
    lambda: torch.zeros(17, requires_grad=True), lambda: torch.zeros(2, 3, 4, 5),
    lambda: nn.Parameter(torch.zeros(3)), lambda: np.float32(0.5), lambda: np.float64(math.nan),
    lambda: np.int64(3), lambda: np.bool_(True), lambda: np.zeros(17), lambda: np.zeros((2, 3),
    complex),
    lambda: np.array(["a"]), lambda: np.array([None]), lambda: np.datetime64("2020"),
    lambda: np.float16(2.0), lambda: np.array(0.5), lambda: np.ma.masked,
    lambda: pd.DataFrame(), lambda: pd.DataFrame({"a": [1]}), lambda: pd.Series([1.0]),
    lambda: pd.NA,
    lambda: nn.Linear(2, 2), lambda: nn.Linear, lambda: nn.Sequential(),
    lambda: nn.ReLU(), lambda: nn.CrossEntropyLoss(), lambda: nn.MSELoss(reduction="none"),
    lambda: torch.float32, lambda: torch.float16, lambda: torch.int64, lambda: torch.device("cpu"),
    lambda: torch.device("meta"), lambda: "cuda:99", lambda: "meta",
    lambda: isoloss.Stop(steps=1), lambda: isoloss.Record(), lambda: isoloss.L1(),
    lambda: isoloss.SQP(), lambda: isoloss.Paper(), lambda: isoloss.SquaredNorm(),
    lambda: isoloss.maximize("l1"), lambda: isoloss.Outcome.STALLED, lambda: isoloss.losses.mse,
    lambda: isoloss.InputError("x"), lambda: isoloss.losses.Huber(delta=2.0),
]  # fmt: skip
EVERY: list[Callable[[], Any]] = [
    *MAKERS, *(lambda value=value: value for value in [*NUMBERS, *TEXTS]),
]  # fmt: skip
WORDS = [
    "", " ", "-1", "0", "1", "99999999999999999999", "9" * 400, "9" * 5000, "1e905", "-inf", "nan",
    "inf", "0.5", "1_0", "٣", "a", "none", "all", "auto", "cpu", "cuda", "cuda:99", "meta",
    "cuda:-1",
    "IRIS_FF", "iris_ff", "MNIST", "sqp", "paper", "l1", "squared_norm", "../..", "/dev/null",
    "/proc/nothing", "~nobody", "a\0b", "\ud800", "[/red]", "[bold]", "[link=x", "=cmd", "\\input",
    "x" * 5000, "a.py", "a.py:b", "a.py:", ":", ":b", "/dev/null:b", "x.py:f.g", "0,1,", "0,,1",
    "1,1", "1e-400,0", "-1,2", "0," * 300 + "0", "1e308,1e309", "steps", "steps=", "=5", "steps=0",
    "steps=1e9", "steps=" + "9" * 30, "memory=" + "9" * 20, "memory=16", "chunk_size=" + "9" * 20,
    "rtol=0", "rtol=nan", "seconds=-1", "when=1", "dtype=float16", "regularizer=none", "kind=x",
    "points_at_most=1", "points_every=" + "9" * 400, "held_out=1", "epochs=" + "9" * 20, "--", "-x",
    "--help", "--version", "é\u202e", "\n", "{x}", "%s", "name=x", "epochs=none",
    "largest_step=1e-9",
]  # fmt: skip


def wrong(rng: random.Random, right: Any = None) -> Any:
    """A value that probably does not fit: of another kind, or of the right one and wrong in it."""
    if rng.random() < 0.4:
        return rng.choice(EVERY)()
    match right:
        case bool() | int() | float():
            return rng.choice(NUMBERS)
        case str() | pathlib.Path():
            return rng.choice(TEXTS)
        case torch.Tensor():
            return _tensor(rng, right)
        case nn.Module():
            return rng.choice(MODULES)()
        case pd.DataFrame():
            return _frame(rng, right)
        case dict() | list() | tuple():
            return _container(rng, right)
        case isoloss.training.TrainingState():
            return rng.choice(EVERY)()
        case _ if dataclasses.is_dataclass(right) and not isinstance(right, type):
            name = rng.choice(dataclasses.fields(right)).name
            try:
                return dataclasses.replace(right, **{name: wrong(rng, getattr(right, name))})
            except Exception:  # its own class refuses it
                return rng.choice(EVERY)()
        case _:
            return rng.choice(EVERY)()


def _tensor(rng: random.Random, right: torch.Tensor) -> Any:
    right = right.detach()
    bad = rng.choice((math.nan, math.inf, -math.inf, 1e300, 1e30, 0.0, -1.0, 5e-324))
    ways: list[Callable[[], Any]] = [
        lambda: right.flatten(), lambda: right[None], lambda: right[:-1], lambda: right[:0],
        lambda: right.repeat(2, *[1] * (right.ndim - 1)), lambda: right.T, lambda: right.sum(),
        lambda: torch.full_like(right, int(max(-9, min(bad, 9))) if bad == bad and
                                not right.is_floating_point() else bad),
        lambda: right.to(torch.complex128), lambda: right.to(torch.float16), lambda: right.long(),
        lambda: right.bool(), lambda: right.to_sparse(), lambda: right.to("meta"),
        lambda: right.double().requires_grad_(), lambda: right.float(),
        lambda: right.to(torch.int8),
        lambda: right.numpy(), lambda: right.tolist(), lambda: nn.Parameter(right.double()),
        lambda: right.unsqueeze(-1), lambda: torch.stack([right, right], -1),
        lambda: 10 * right - 5,
    ]  # fmt: skip
    try:
        return rng.choice(ways)()
    except RuntimeError:  # a number beyond the type's
        return right[None]


MODULES: list[Callable[[], Any]] = [
    lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).double(), lambda: nn.LazyLinear(2), nn.ReLU,
    lambda: nn.Sequential(), lambda: nn.Linear(2, 2, device="meta"), lambda: nn.LSTM(2, 2),
    lambda: nn.Linear(2, 2).half(), lambda: nn.Linear(2, 2).to(torch.complex64),
    lambda: nn.Linear(2, 2).requires_grad_(False), lambda: nn.BatchNorm1d(2), lambda: nn.Dropout(),
    lambda: nn.Linear(0, 2), lambda: nn.Embedding(3, 2), lambda: nn.Conv2d(2, 2, 1),
    lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 2)), lambda: nn.Bilinear(2, 2, 2),
    lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), lambda: nn.Flatten(0),
]  # fmt: skip


def _frame(rng: random.Random, right: pd.DataFrame) -> Any:
    column = rng.choice(list(right.columns) or ["a"])
    ways: list[Callable[[], Any]] = [
        lambda: right.drop(columns=column), lambda: right.iloc[:0], lambda: right.iloc[:1],
        lambda: right.assign(**{column: math.nan}), lambda: right.assign(**{column: "a"}),
        lambda: right.assign(**{column: None}), lambda: right.assign(**{column: math.inf}),
        lambda: right.assign(**{column: 10**400}), lambda: right.assign(**{column: -1.0}),
        lambda: pd.concat([right, right], axis=1), lambda: pd.concat([right, right]),
        lambda: right.T, lambda: right.astype(str), lambda: right[column], lambda: right.to_numpy(),
        lambda: right.rename(columns={column: 3}), lambda: right.set_index(column),
        lambda: right.assign(**{column: 1j}), lambda: right.sample(frac=1.0, random_state=0),
    ]  # fmt: skip
    return rng.choice(ways)()


def _container(rng: random.Random, right: Any) -> Any:
    """With a part wrong, more of them, or fewer."""
    parts = list(right.items()) if isinstance(right, dict) else list(right)
    how, at = rng.choice(("part", "part", "part", "more", "fewer", "none")), 0
    if parts and how == "part":
        at = rng.randrange(len(parts))
        if isinstance(right, dict):
            key, value = parts[at]
            if rng.random() < 0.2:
                parts[at] = rng.choice((3, None, "", "step", "a b", "x" * 500, ("a",))), value
            else:
                parts[at] = key, wrong(rng, value)
        else:
            parts[at] = wrong(rng, parts[at])
    elif parts and how == "more":
        parts.append(("more", parts[0][1]) if isinstance(right, dict) else parts[0])
    elif how == "fewer":
        parts = parts[:-1]
    else:
        parts = []
    return type(right)(parts)
