"""Settings of a walk from KEY=VALUE pairs."""

import json

import pytest

from isoloss import InputError, experiments
from isoloss.runs.settings import walk_settings

IRIS = experiments.get("IRIS_FF")


def test_the_experiments_own_settings_are_the_default():
    config = walk_settings(IRIS, "paper").config(seed=7)
    assert config["seed"] == 7
    assert config["method"] == {"name": "paper", **IRIS.paper.model_dump()}
    assert config["stop"]["steps"] == 20_000
    assert config["record"]["points_every"] == 50
    assert config["record"]["probes_every"] == 1
    assert json.loads(json.dumps(config)) == config


def test_pairs_reach_the_part_they_belong_to():
    pairs = ["steps=500", "corrector_step=1e-4", "points_at_most=9", "rtol=1e-2", "dtype=float64"]
    chosen = walk_settings(IRIS, "paper", pairs)
    assert chosen.stop.steps == 500
    assert chosen.method.corrector_step == 1e-4
    assert chosen.record.points_at_most == 9
    assert chosen.level.rtol == 1e-2
    assert chosen.level.dtype == "float64"
    assert walk_settings(IRIS, "sqp", ["chunk_size=40"]).config(0)["chunk_size"] == 40
    assert "chunk_size" not in walk_settings(IRIS, "sqp").config(0)
    assert walk_settings(IRIS, "sqp", ["regularizer=l1"]).level.regularizer == "l1"
    assert walk_settings(IRIS, "sqp", ["regularizer=l1"]).stop.regularizer_below is None
    assert walk_settings(IRIS, "sqp", ["regularizer_below=20"]).stop.regularizer_below == 20
    assert walk_settings(IRIS, "sqp", ["regularizer_below=20"]).level.regularizer == "squared_norm"
    assert walk_settings(IRIS, "paper", ["points_at_most=none"]).record.points_at_most is None


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("stepz=5", ["stepz", "did you mean steps"]),
        ("steps", ["KEY=VALUE"]),
        ("regularizer=l11", ["'l11'", "did you mean l1"]),
        ("=5", ["KEY=VALUE"]),
        ("steps=0", ["steps=0", "greater than 0"]),
        ("steps=-5", ["steps=-5", "greater than 0"]),
        ("steps=many", ["steps=many", "integer"]),
        ("steps=1.5", ["steps=1.5", "integer"]),
        ("corrector_step=nan", ["corrector_step=nan", "finite"]),
        ("corrector_step=inf", ["corrector_step=inf", "finite"]),
        ("smallest_step=1", ["smallest_step=1.0", "largest_step=0.1"]),
        ("rtol=0", ["rtol=0", "greater than 0"]),
        ("rtol=1", ["rtol=1", "less than 1"]),
        ("points_at_most=1", ["points_at_most=1", "greater than or equal to 2"]),
        ("dtype=float16", ["dtype=float16", "float32"]),
        ("chunk_size=0", ["chunk_size=0", "greater than or equal to 1"]),
        ("when=print", ["when"]),
    ],
)
def test_bad_pairs_get_one_sentence(pair, words):
    with pytest.raises(InputError) as refusal:
        walk_settings(IRIS, "paper", [pair])
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        walk_settings(IRIS, "paper", ["steps=5", "steps=6"])


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="papr"):
        walk_settings(IRIS, "papr")
