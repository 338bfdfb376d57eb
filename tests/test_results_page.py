"""The page of the results says what the tables beside it say, and nothing that no one checks."""

from __future__ import annotations

import csv
import functools
import importlib.util
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE = (RESULTS / "index.md").read_text(encoding="utf-8")
TABLES = sorted(path.relative_to(RESULTS) for path in RESULTS.rglob("*.csv"))

spec = importlib.util.spec_from_file_location("write", RESULTS / "write.py")
assert spec
assert spec.loader
write = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write)


def copied(to):
    """The template and the tables, to be changed."""
    pictures = shutil.ignore_patterns("*.png")
    return Path(shutil.copytree(RESULTS, to / "results", ignore=pictures))


def test_the_page_is_what_the_tables_give():
    assert write.render() == PAGE, "run python docs/results/write.py"


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_another_table_gives_another_page(table, tmp_path):
    folder = copied(tmp_path)
    changed = pd.read_csv(folder / table)
    names = ["penalty", "seed", "runs", "lost"]
    numbers = changed.select_dtypes("number").columns.drop(names, errors="ignore")
    changed[numbers] = changed[numbers] * 1.3
    changed.to_csv(folder / table, index=False)
    with suppress(write.UnsupportedError):  # a claim that no longer holds
        assert write.render(folder) != PAGE


def test_a_claim_that_the_tables_do_not_bear_out_is_refused(tmp_path):
    folder = copied(tmp_path)
    rows = pd.read_csv(folder / "MPG_FF" / "comparison.csv")
    rows.loc[rows["group"] == "walk by sqp", "mean"] += 1.0  # above weight decay's best
    rows.to_csv(folder / "MPG_FF" / "comparison.csv", index=False)
    with pytest.raises(write.UnsupportedError, match="claim"):
        write.render(folder)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("falls by 0.97 and rises", ["0.97"]),
        ("12 % of {{ decay }} in [[3 runs]]", ["12"]),
        ("a fifth, twelve times, one start", ["fifth", "twelve", "one "]),
        ("the one that IRIS_FF and CIFAR10_CONV have; [all](a/2.md), `x = 3`", []),
        ("```sh\nisoloss decay --runs 1\n```", []),
        ("[[20,000\nsteps]] and {{ row(x, 4) }}", []),
    ],
)
def test_a_number_that_nothing_checks_is_found(said, found):
    assert write.unchecked(said) == found


def test_the_page_with_a_number_that_nothing_checks_is_refused(tmp_path):
    folder = copied(tmp_path)
    template = folder / "index.md.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "\nIt took 7 hours.\n", "utf-8")
    with pytest.raises(write.UnsupportedError, match="7: look"):
        write.render(folder)


@pytest.mark.parametrize(
    ("made", "number"),
    [
        (write.fixed(0.3515, 3), "0.352"),
        (write.fixed(1843.8, 0), "1,844"),
        (write.digits(9.1334e-4), "9.13e-4"),
        (write.digits(0.013449), "0.0134"),
        (write.digits(9.996), "10.0"),
        (write.digits(587.9, 1), "600"),
        (write.digits(45.998), "46.0"),
        (write.short(1e-3), "1e-3"),
        (write.short(0.01), "1e-2"),
        (write.short(10000.0), "1e4"),
        (write.short(0.1), "0.1"),
        (write.word(12.4), "twelve"),
        (write.part(0.214), "a fifth"),
        (write.part(0.13), "an eighth"),
    ],
)
def test_numbers_are_written_for_people(made, number):
    assert made == number


def test_runs_are_counted_by_their_outcome(tmp_path):
    (tmp_path / "A").mkdir()
    rows = ["method,evaluations,outcome", "sqp,1511,converged", "sqp,3503,converged"]
    rows += ["sqp,9000,stalled", "paper,10001,step_limit"]
    (tmp_path / "A" / "outcomes.csv").write_text("\n".join(rows), encoding="utf-8")
    assert len(write.runs(tmp_path, "A")) == 3
    converged = write.runs(tmp_path, "A", outcome="converged")
    assert write.span(converged["evaluations"]) == "1,511 to 3,503"


def test_the_page_agrees_with_the_tables_read_by_hand():
    def rows(name, **wanted):
        with (RESULTS / "MPG_FF" / f"{name}.csv").open(encoding="utf-8") as file:
            return [
                row
                for row in csv.DictReader(file)
                if all(row[column] == value for column, value in wanted.items())
            ]

    (change,) = rows(
        "changes", group="walk by sqp", comparison="start to end", quantity="test_loss"
    )
    low, mean, high = (-float(change[name]) for name in ("high", "mean", "low"))
    assert f"(`sqp`: by {mean:.2f}, interval {low:.2f} to {high:.2f}, t-test" in PAGE
    (norm,) = rows("comparison", group="walk by sqp", place="end", quantity="squared_norm")
    (slow,) = rows("comparison", group="walk by paper", place="end", quantity="squared_norm")
    above = 100 * (float(slow["mean"]) / float(norm["mean"]) - 1)
    assert f"still is {above:.0f} % above that of the end" in PAGE
    section = re.search(r"\*\*MPG_FF\*\*.*?\*\*MNIST_FF\*\*", PAGE, re.DOTALL)
    assert section
    assert (
        f"| end of the walk by `sqp` | 5.14 | 5.20 | | {float(norm['mean']):.1f} | 10 |"
        in section[0]
    )


SHOWN = {
    "MPG_FF": "Auto MPG, dense", "MNIST_CONV": "MNIST, convolutions",
    "CIFAR10_CONV": "CIFAR-10, convolutions, ended early", "IRIS_FF": "Iris, dense",
    "MNIST_FF": "MNIST, dense", "vision transformer": "digits, small vision transformer",
    "residual, ReLU, batch norm": "digits, residual network with batch norm",
}  # fmt: skip
"""The networks of the README's table, by their names in the tables of the results."""


@functools.cache
def readme_row(name):
    """What the README has to say of a network."""
    if name in (kinds := write.kinds(RESULTS)):
        changed = vars(kinds[name]["test_metric_end_change"])
        ends, runs = [kinds[name][f"test_metric_{place}"] for place in ("start", "end")], None
    else:
        quantity = "test_metric" if name == "CIFAR10_CONV" else "test_loss"
        changed = write.change(RESULTS, name, quantity=quantity)
        places = [write.walk(RESULTS, name, place=place) for place in ("start", "end")]
        ends, runs = [place[quantity] for place in places], places[1]["runs"]
    if name == "CIFAR10_CONV" or runs is None:
        before, after = (write.fixed(100 * value, 1) for value in ends)
        said, unit = f"accuracy {before} → {after} %", " points"
        interval = write.between({key: 100 * changed[key] for key in ("low", "high")}, 1)
    else:
        before, after = (write.digits(value) for value in ends)
        said, unit = f"loss {before} → {after}", ""
        interval = write.between(changed, 2 if ends[1] > 1 else 3)
    p = changed["t_p"]
    told = "< 0.001" if p < 0.001 else f"{p:.2f}"
    return f"| {SHOWN[name]} | {runs or changed['runs']} | {said} | {interval}{unit} | {told} |"


@pytest.mark.parametrize("name", SHOWN)
def test_the_readme_says_the_same(name):
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert readme_row(name) in readme.splitlines()
    assert readme.count("→") == len(SHOWN)
    assert f"any of {len(write.penalties(RESULTS, 'MPG_FF'))} penalties" in readme
    for experiment in ("MPG_FF", "MNIST_CONV"):
        least = write.best(RESULTS, experiment)["test_loss"]
        assert write.walk(RESULTS, experiment)["test_loss"] < least
    walked_on = write.after(RESULTS, "MNIST_CONV")
    before, after = (write.digits(walked_on[place]) for place in ("start", "end"))
    assert f"test loss from {before} to {after}" in readme
    assert f"(by {write.fallen(walked_on, 3)} over {walked_on['runs']} starts)" in readme


def test_one_test_says_what_can_be_told_from_chance():
    """The paired t-test, on the page, in the README and in the paper."""
    root = RESULTS.parents[1]
    lost = {name for name in SHOWN if "< 0.001" not in readme_row(name)}
    assert lost == {"IRIS_FF", "MNIST_FF"}  # as the paper has it too
    assert min(write.change(RESULTS, name)["t_p"] for name in lost) > 0.05
    assert write.after(RESULTS, "MNIST_CONV")["t_p"] < 0.001
    for place in ("README.md", "paper/paper.md"):
        assert "paired t-tests" in " ".join((root / place).read_text(encoding="utf-8").split())
    assert all("wilcoxon" not in line.lower() or "0.0625" in line for line in PAGE.splitlines())
