"""Every bad setting is answered with one sentence."""

from __future__ import annotations

import math
from typing import Any, Literal

import pydantic
import pytest

from isoloss import InputError, Paper, Record, Stop
from isoloss.errors import IsolossError, unknown
from isoloss.settings import Settings


class Toy(Settings):
    kind: Literal["a", "b", "c"] = "a"
    flag: bool = False


BAD: list[tuple[type[Settings], str, Any, str]] = [
    (Stop, "steps", 0, "be greater than 0"),
    (Stop, "steps", 2.5, "be a whole number"),
    (Stop, "steps", "many", "be a whole number"),
    (Stop, "evaluations", -1, "be greater than 0"),
    (Stop, "seconds", 0.0, "be greater than 0"),
    (Stop, "seconds", math.inf, "be a finite number"),
    (Stop, "kkt_residual", -1e-3, "be greater than or equal to 0"),
    (Stop, "kkt_residual", math.nan, "be a finite number"),
    (Stop, "regularizer_below", math.nan, "be a finite number"),
    (Stop, "when", 3, "be callable"),
    (Record, "points_every", -5, "be greater than 0"),
    (Record, "points_at_most", 1, "be greater than or equal to 2"),
    (Paper, "largest_step", -1.0, "be greater than 0"),
    (Paper, "corrector_step", math.nan, "be a finite number"),
    (Toy, "kind", "d", "be 'a', 'b' or 'c'"),
    (Toy, "flag", "perhaps", "be true or false"),
]


@pytest.mark.parametrize(("owner", "key", "value", "must"), BAD)
def test_a_bad_value_is_named_with_its_key_and_owner(
    owner: type[Settings], key: str, value: Any, must: str
) -> None:
    with pytest.raises(InputError) as refusal:
        owner(**{key: value})
    assert str(refusal.value) == f"{key} of {owner.__name__} must {must}, got {value}"


def test_an_empty_bad_value_is_said_to_be_nothing(refuses) -> None:
    with refuses("steps of Stop must be a whole number, got nothing"):
        Stop(steps="")


def test_a_long_bad_value_is_cut(refuses) -> None:
    with refuses("steps of Stop must be a whole number, got 1 1 1", " ..."):
        Stop(steps="1 " * 300)


def test_a_key_that_is_none_is_answered_with_the_one_meant_or_the_list(refuses) -> None:
    for owner, key, meant in (
        (Stop, "kkt_resdual", "kkt_residual"),
        (Record, "point_every", "points_every"),
        (Paper, "corector_step", "corrector_step"),
    ):
        with refuses(repr(key), owner.__name__, f"did you mean {meant}"):
            owner(**{key: 1})
    with refuses("'xyz'", "points_at_most, points_every, probes_every"):
        Record(xyz=1)


def test_settings_cannot_be_changed() -> None:
    stop = Stop(steps=5)
    with pytest.raises(pydantic.ValidationError):
        stop.steps = 6
    assert stop.steps == 5


def test_defaults_are_the_documented_ones() -> None:
    assert Stop().model_dump() == {
        "kkt_residual": 1e-3,
        "regularizer_below": None,
        "steps": 20_000,
        "evaluations": None,
        "seconds": None,
        "gain": 1e-3,
        "when": None,
    }
    assert Record().model_dump() == {"probes_every": 1, "points_every": 1, "points_at_most": 200}


def test_papers_defaults_are_those_of_the_reference() -> None:
    paper = Paper()
    assert (paper.smallest_step, paper.largest_step) == (1e-5, 0.1)
    assert (paper.corrector_step, paper.tolerance) == (1e-6, 1e-5)


def test_unknown_suggests_whatever_the_case(refuses) -> None:
    with refuses("experiment", "'iris_ff'", "did you mean IRIS_FF?", "IRIS_FF, MPG_FF"):
        raise unknown("experiment", "iris_ff", ["MPG_FF", "IRIS_FF"])
    assert issubclass(InputError, IsolossError)
    assert issubclass(InputError, ValueError)
