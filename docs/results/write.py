"""Writes index.md from index.md.jinja and the tables beside it.

    python docs/results/write.py

Every number of the page is looked up in the tables or stands in double brackets in the template,
which says that no table has it: `[[20,000]]`. A number, or a word for one, outside of both is
refused, and so is a claim, `{{ sure(...) }}`, that the tables do not bear out.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from isoloss.report.statistics import paired_change

HERE = Path(__file__).parent
BRACKETS = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
NO_NUMBER = re.compile(
    r"^```.*?^```$"  # code
    r"|`[^`]*`"
    r"|\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}"  # what is looked up
    r"|\]\([^)]*\)"  # where links lead
    r"|\b[A-Z0-9]+_(?:FF|CONV)\b",  # experiments
    re.DOTALL | re.MULTILINE,
)
WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
PARTS = ["half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
NUMBER = re.compile(
    r"\S*\d\S*|\b(?:one (?=starts?\b|runs?\b)|twice|halves|halved|doubles?|"
    rf"{'|'.join([*WORDS, *PARTS])})\b",
    re.IGNORECASE,
)


class UnsupportedError(Exception):
    """The template says what the tables do not."""


def render(folder: Path = HERE) -> str:
    """The page, from the template and the tables in a folder."""
    template = (folder / "index.md.jinja").read_text(encoding="utf-8")
    if loose := unchecked(template):
        raise UnsupportedError(
            f"{', '.join(loose)}: look these numbers up, or write [[...]] where no table has them"
        )
    names = {name: partial(look, folder) for name, look in LOOK_UPS.items()}
    return compiled(template).render(names | FORMATS)


@cache
def compiled(template: str) -> jinja2.Template:
    """The template, ready to be filled in."""
    # it is Markdown that is written, from the repository's own files
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.from_string(BRACKETS.sub(r"\1", template))


def unchecked(template: str) -> list[str]:
    """Numbers of a template that are neither looked up nor in double brackets."""
    return NUMBER.findall(NO_NUMBER.sub(" ", BRACKETS.sub(" ", template)))


# What is looked up: one network, change or walk as a namespace of numbers.


@cache
def table(folder: Path, experiment: str, name: str) -> pd.DataFrame:
    """A table of an experiment."""
    return pd.read_csv(folder / experiment / f"{name}.csv")


def _networks(rows: pd.DataFrame) -> Any:
    """Means of some networks, by quantity, with their runs and penalty."""
    runs = int(rows["runs"].max())
    means = dict(zip(rows["quantity"], rows["mean"], strict=True))
    penalty, best = short(rows["penalty"].iloc[0]), bool(rows["best_on_test"].any())
    return pd.Series({**means, "runs": runs, "penalty": penalty, "best": best})


@cache
def walk(folder: Path, experiment: str, method: str = "sqp", place: str = "end") -> Any:
    """Where walks start or end."""
    rows = table(folder, experiment, "comparison")
    return _networks(rows[(rows["group"] == f"walk by {method}") & (rows["place"] == place)])


def measured(folder: Path, experiment: str, method: str, quantity: str) -> float:
    """What only the table of the walks has at their end: steps, evaluations, the angle."""
    rows = table(folder, experiment, "walk").set_index(["method", "quantity", "place"])
    return float(rows.loc[(method, quantity, "end"), "mean"])


@cache
def penalties(folder: Path, experiment: str) -> list[Any]:
    """The networks of weight decay, by ascending penalty."""
    rows = table(folder, experiment, "comparison")
    groups = rows[rows["group"] == "weight decay"].groupby("penalty", sort=True)
    return [_networks(of_penalty) for _, of_penalty in groups]


def decay(folder: Path, experiment: str, penalty: str) -> Any:
    """The networks of one penalty."""
    (found,) = (one for one in penalties(folder, experiment) if one["penalty"] == penalty)
    return found


def best(folder: Path, experiment: str, quantity: str = "test_loss", *, most: bool = False) -> Any:
    """The networks of the penalty with the least (or largest) mean of a quantity."""
    return (max if most else min)(penalties(folder, experiment), key=lambda one: one[quantity])


def held_out(folder: Path, experiment: str) -> Any:
    """Weight decay with the penalty chosen on held-out examples, run by run."""
    rows = table(folder, experiment, "comparison")
    return _networks(rows[rows["group"].str.contains("chosen on held-out")])


def lost(folder: Path, experiment: str) -> int:
    """How many networks were lost."""
    return int(table(folder, experiment, "comparison")["lost"].max())


def collapsed(folder: Path, experiment: str) -> str:
    """The smallest penalty whose weights, biases apart, are zero but for rounding."""
    return next(
        one["penalty"]
        for one in penalties(folder, experiment)
        if one["squared_norm_weights"] < 1e-3
    )


def change(
    folder: Path,
    experiment: str,
    method: str = "sqp",
    quantity: str = "test_loss",
    between: str = "start to end",
) -> Any:
    """A paired change from the start of a walk to its end, or as the table's comparison begins."""
    rows = table(folder, experiment, "changes")
    rows = rows[(rows["group"] == f"walk by {method}") & (rows["quantity"] == quantity)]
    return rows[rows["comparison"].str.startswith(between)].squeeze()


def after(folder: Path, experiment: str, quantity: str = "test_loss") -> Any:
    """The paired change of a walk from weight decay's best, and where that starts and ends."""
    rows = table(folder, experiment, "after-decay")
    ends = rows[rows["quantity"] == quantity.replace("_", " ")].set_index("place")["mean"]
    found = rows[(rows["quantity"] == quantity) & (rows["comparison"] == "start to end")].squeeze()
    return pd.concat([found, ends])


def equivalent(folder: Path, experiment: str, column: str, method: str = "sqp") -> float:
    """Mean over the runs that were trained with the penalty at which a walk ended."""
    rows = table(folder, experiment, "equivalent")
    return float(rows.loc[rows["method"] == method, column].mean())


def ends(folder: Path, experiment: str) -> pd.DataFrame:
    """The ends of walks at one level from many starts, a row each, with weight decay's."""
    return table(folder, experiment, "ends")


@cache
def kinds(folder: Path) -> dict[str, Any]:
    """Networks beyond the paper's, by name: means over their starts, and the paired changes."""
    rows = pd.read_csv(folder / "architectures.csv")
    rows["share"] = rows["regularizer_end"] / rows["regularizer_start"]
    rows["half"] = rows["regularizer_half"] / rows["regularizer_start"]
    found = {}
    for name, of in rows.groupby("network", sort=False):
        changes = {
            f"{what}_{place}_change": paired_change(of[f"{what}_start"], of[f"{what}_{place}"])
            for what in ("test_loss", "test_metric")
            for place in ("half", "end")
        }
        worst = of["cut"].abs().max()
        means = dict(of.mean(numeric_only=True))
        found[str(name)] = pd.Series({**means, **changes, "starts": len(of), "cut": worst})
    return found


def runs(folder: Path, experiment: str, method: str = "sqp", outcome: str | None = None) -> Any:
    """The walks, or those with an outcome: a column for what each has at its end."""
    rows = table(folder, experiment, "outcomes")
    return rows[(rows["method"] == method) & (rows["outcome"].eq(outcome) | (outcome is None))]


def all_converged(folder: Path, experiment: str) -> bool:
    """Whether every walk by sqp did."""
    return bool(runs(folder, experiment)["outcome"].eq("converged").all())


# How a number is written.


def short(penalty: float) -> str:
    """A penalty as the page writes it: 0.1, 1e-3, 1e4."""
    if 0.1 <= penalty <= 100 or not penalty > 0:
        return f"{penalty:g}"
    digit, _, power = f"{penalty:.0e}".partition("e")
    return f"{digit}e{int(power)}"


def fixed(value: float, decimals: int) -> str:
    """With so many decimals: 0.167, 1,844."""
    return f"{_rounded(value, -decimals):,f}"


def digits(value: float, figures: int = 3) -> str:
    """With so many significant figures: 344, 29.5, 0.0241, 9.13e-4."""
    lowest = _exact(value).adjusted() - figures + 1
    rounded = _rounded(value, lowest)
    power = rounded.adjusted()  # one more of 9.996
    rounded = _rounded(value, power - figures + 1)
    if power < -2:
        return f"{rounded.scaleb(-power):f}e{power}"
    return f"{rounded.quantize(Decimal(1)) if power >= figures else rounded:,f}"


def _exact(value: float) -> Decimal:
    """A float as people write it, so that 0.3515 is not a little less."""
    return Decimal(f"{value:.12g}")


def _rounded(value: float, power: int) -> Decimal:
    """To a power of ten, halves up."""
    return _exact(value).quantize(Decimal(1).scaleb(power), ROUND_HALF_UP)


def fall(changed: Any, decimals: int) -> str:
    """By how much something falls, on average."""
    sure(changed["mean"] < 0)
    return fixed(-changed["mean"], decimals)


def fallen(changed: Any, decimals: int) -> str:
    """The interval of a fall."""
    return f"{fixed(-changed['high'], decimals)} to {fixed(-changed['low'], decimals)}"


def between(changed: Any, decimals: int) -> str:
    """The interval of a change."""
    return f"{fixed(changed['low'], decimals)} to {fixed(changed['high'], decimals)}"


def span(values: pd.Series) -> str:
    """From the least to the largest of whole numbers: 1,511 to 3,503."""
    return f"{fixed(values.min(), 0)} to {fixed(values.max(), 0)}"


def word(number: float) -> str:
    """A whole number from two to twelve, or what is nearest to one: twelve."""
    return WORDS[round(number) - 2]


def part(share: float) -> str:
    """A share as a word: a fifth."""
    word = PARTS[round(1 / share) - 2]
    return f"an {word}" if word.startswith("e") else f"a {word}"


def sure(claim: bool) -> str:
    """Nothing; refuses a claim that is wrong."""
    if not claim:
        raise UnsupportedError(
            "a claim of index.md.jinja is not borne out by the tables: see sure(...)"
        )
    return ""


def tested(changed: Any, decimals: int) -> str:
    """A change with its interval, runs and t-test's p, as a cell."""
    if changed.empty:
        return ""
    mean = fixed(changed["mean"], decimals)
    p = digits(changed["t_p"], 1 if changed["t_p"] < 0.1 else 2)
    return f"{mean} ({between(changed, decimals)}; {changed['runs']:.0f} runs, p = {p})"


def row(networks: Any, label: str = "", accuracy: int | None = 3) -> str:
    """A row of the page's table; `accuracy` is how many decimals that has."""
    if not label:
        chosen = " (best on the test set)" if networks["best"] else ""
        label = f"weight decay, penalty {networks['penalty']}{chosen}"
    test, norm = networks["test_loss"], networks["squared_norm"]
    cells = [
        label,
        digits(networks["train_loss"]),
        digits(test) if test >= 1 else fixed(test, 3),
        "" if accuracy is None else fixed(networks["test_metric"], accuracy),
        fixed(norm, 0) if norm >= 100 else digits(norm),
        str(networks["runs"]),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def kind_row(name: str, found: Any) -> str:
    """A row of the table of networks beyond the paper's."""
    cells = [name, fixed(found["share"], 2)]
    for what, unit, decimals in (("test_loss", 1, 3), ("test_metric", 100, 1)):
        places = (found[f"{what}_{place}"] for place in ("start", "half", "end"))
        cells.append(" → ".join(fixed(unit * one, decimals) for one in places))
    return f"| {' | '.join(cells)} |"


def points(found: Any) -> str:
    """How far the accuracy of a network beyond the paper's went, in percent, with the interval."""
    change = found["test_metric_end_change"]
    sizes = sorted(abs(100 * one) for one in (change.low, change.high))
    return f"{fixed(abs(100 * change.mean), 1)} ({fixed(sizes[0], 1)} to {fixed(sizes[1], 1)})"


LOOK_UPS = {
    look.__name__: look
    for look in (
        walk, measured, penalties, decay, best, held_out, lost, collapsed,
        change, after, equivalent, ends, kinds, runs, all_converged, table,
    )
}  # fmt: skip
FORMATS = {
    made.__name__: made
    for made in (
        fixed,
        digits,
        fall,
        fallen,
        between,
        span,
        word,
        part,
        sure,
        tested,
        row,
        kind_row,
        points,
        len,
        max,
        min,
        abs,
    )
}

if __name__ == "__main__":
    (HERE / "index.md").write_text(render(), encoding="utf-8")
