"""What the report writes, and what it says of results that are not whole."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import matplotlib.image
import pandas as pd
import pytest
import torch
from tests.report.made import FAILURE, made_path, write_run

from isoloss import open_results
from isoloss.report import report, walk_table, write_page
from isoloss.report.chapter import Chapter, load_chapters
from isoloss.report.comparison_section import comparison_section
from isoloss.report.comparison_tables import changes_table, comparison_table
from isoloss.report.report import _mean_of_decay
from isoloss.store import Results, ResultsError, run_folder
from isoloss.store.folder import begin


class Elements(HTMLParser):
    """All start tags of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(reported):
    return Elements(reported.page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chapter(reported):
    (found,) = load_chapters(reported.page.parent).values()
    return found


def table(chapter, title):
    return next(t for s in chapter.sections for t in s.tables if t.title == title)


def test_every_figure_is_there_as_png_and_pdf(reported):
    names = {file.name for file in reported.figures}
    for stem in (
        "walk", "walk-evaluations", "walk-arc-length", "walk-regularizer", "pca-sqp",
        "pca-sqp-unscaled", "variance-sqp", "pca-paper", "pca-paper-unscaled", "variance-paper",
    ):  # fmt: skip
        assert {f"{stem}.png", f"{stem}.pdf"} <= names
    for file in reported.figures:
        if file.suffix == ".png":
            assert matplotlib.image.imread(file).std() > 0.02  # something is drawn
        else:
            assert file.read_bytes().startswith(b"%PDF")


def test_the_outcome_of_every_run_is_in_the_page(chapter, page):
    rows = {row[0]: row[1] for row in table(chapter, "Every run and its outcome").rows}
    assert rows == {
        "paper run-000": "step limit",
        "sqp run-000": "converged",
        "sqp run-001": "converged",
        "sqp run-002": "stalled",
        "sqp run-003": "failed",
        "sqp run-004": "not finished",
    }
    text = "".join(page.text)
    for sentence in ("Said of sqp 2.", FAILURE, "sqp, run-004: not finished"):
        assert sentence in text


def test_numbers_of_a_run_are_those_of_its_walk(chapter):
    titles = table(chapter, "Every run and its outcome").columns
    row = dict(zip(titles, table(chapter, "Every run and its outcome").rows[2], strict=True))
    steps = made_path(45, 1).steps
    assert row["run"] == "sqp run-001"
    assert (row["seed"], row["steps"], row["evaluations"]) == ("8", "44", "89")
    assert row["R"] == f"301 → {steps['regularizer'].iloc[-1]:.4g}"
    assert row["test loss"] == "0.46 → " + f"{steps['test_loss'].iloc[-1]:.4g}"


def test_settings_seeds_and_versions_are_shown(chapter):
    settings = table(chapter, "Settings, seeds and versions")
    assert settings.columns == ["setting", "paper", "sqp"]
    assert ["seed", "7", "7, 8, 9"] in settings.rows
    assert ["isoloss", "0.0", "0.0"] in settings.rows


def test_the_page_is_sound_and_accessible(page):
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    images = page.of("img")
    assert len(images) == 10
    assert all(len(image["alt"]) > 40 for image in images)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_linked_from_elsewhere_and_plotly_is_embedded_once(reported, page):
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert reported.page.read_text(encoding="utf-8").count("* plotly.js v") == 1


def test_a_scene_holds_the_points_and_what_was_measured_there(chapter):
    scene = next(s for part in chapter.sections for s in part.scenes if "sqp" in s.title)
    path, shown = made_path(45, 1), scene.runs[1]
    assert shown.step == list(range(45))
    assert shown.values["R"] == pytest.approx(path.steps["regularizer"].tolist(), rel=1e-5)
    assert len(shown.scaled) == len(shown.unscaled) == 6
    assert {mark.name for mark in scene.marks} == {
        "mean end of the walks", "mean of run 0", "mean of run 1", "mean of run 2"
    }  # fmt: skip
    mean = next(mark for mark in scene.marks if mark.name == "mean of run 1").unscaled
    assert mean == pytest.approx([sum(c) / 45 for c in shown.unscaled], abs=1e-3)


def test_one_run_of_one_point_is_reported_without_band_std_or_components(tmp_path):
    write_run(tmp_path, made_path(1), 0)
    written = report(open_results(tmp_path), "IRIS_FF")
    assert [
        m for m in written.missing if "principal components of sqp" in m and "at least two" in m
    ]
    (chapter,) = load_chapters(written.page.parent).values()
    assert "so no standard deviation" in table(chapter, "Start and end").caption
    assert "plotly.js v" not in written.page.read_text(encoding="utf-8")


def test_walks_without_test_set_and_methods_without_walk_are_reported(tmp_path):
    path = made_path(12)
    steps = path.steps.drop(columns=["test_loss", "test_metric"])
    write_run(tmp_path, dataclasses.replace(path, steps=steps), 0)
    begin(run_folder(tmp_path, "IRIS_FF", "paper", 0), {}, {})
    written = report(open_results(tmp_path), "IRIS_FF")
    assert written.missing == [
        "IRIS_FF, paper, run-000: not finished",
        "IRIS_FF, paper: no walk yet",
        "IRIS_FF: no weight decay yet, make it with 'isoloss decay'",
    ]
    (chapter,) = load_chapters(written.page.parent).values()
    assert table(chapter, "Every run and its outcome").rows[1][-2:] == ["-", "-"]


def test_the_page_holds_all_experiments_reported_so_far(tmp_path):
    for name in ("MPG_FF", "IRIS_FF"):
        (tmp_path / name).mkdir()
        Chapter(experiment=name, lead="<b>", missing=[], sections=[]).save(tmp_path / name)
    page = Elements(write_page(tmp_path).read_text(encoding="utf-8"))
    assert [article["id"] for article in page.of("article")] == ["IRIS_FF", "MPG_FF"]
    assert page.text.count("<b>") == 2  # no tag of ours


def test_a_damaged_chapter_is_named_and_the_page_left_alone(tmp_path):
    (tmp_path / "IRIS_FF").mkdir()
    (tmp_path / "IRIS_FF" / "chapter.json").write_text('{"format_version": 1}')
    (tmp_path / "index.html").write_text("before")
    with pytest.raises(ResultsError, match="isoloss report IRIS_FF"):
        write_page(tmp_path)
    assert (tmp_path / "index.html").read_text() == "before"


def decay_table(penalties=(0.0, 1e-3), runs=2):
    rows = [
        {
            "run": k, "seed": 7 + k, "penalty": penalty, "epoch": 4, "train_loss": 0.2 + penalty,
            "penalized_train_loss": 0.3, "train_metric": 0.9,
            "test_loss": 0.5 - 100 * penalty + k / 50,
            "penalized_test_loss": 0.6, "test_metric": 0.8, "squared_norm": 10.0 + k,
            "squared_norm_weights": 9.0, "lost_epoch": -1, "status": "finished",
        }
        for k in range(runs)
        for penalty in penalties
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_section_on_weight_decay_says_what_was_run_and_lost():
    methods, decay = {"sqp": [made_path(9), made_path(9, 1)]}, decay_table()
    decay.loc[3, "status"] = "non_finite"
    compared, changed = comparison_table(methods, decay), changes_table(methods, decay, "accuracy")
    section = comparison_section(compared, changed, decay)
    assert section.text[0] == (
        "Weight decay from 2 random starts with penalties 0, 0.001, 4 epochs. 1 of 4 networks "
        "became infinite or not a number and are counted as lost."
    )
    assert "smallest mean test loss of weight decay is 0.41, at penalty 0.001" in (
        section.pictures[0].alt
    )
    changes, networks = section.tables
    assert changes.rows[0][:3:2] == ["walk by sqp: test loss", "start to end"]
    assert [row[0] for row in networks.rows] == [
        "walk by sqp, start", "walk by sqp, end", "weight decay, 0", "weight decay, 0.001 (t)"
    ]  # fmt: skip
    alone = comparison_section(compared, changed, decay.iloc[:0])
    assert "no weight decay" in alone.text[0]
    assert alone.pictures == []


def test_the_mean_end_of_weight_decay_is_marked_among_the_components(tmp_path, monkeypatch):
    decay = decay_table()
    decay.loc[3, "status"] = "non_finite"  # of run 1, penalty 1e-3
    points = torch.arange(4.0)[:, None] * torch.ones(60)
    monkeypatch.setattr(Results, "decay", lambda self, experiment: decay)
    monkeypatch.setattr(Results, "decay_points", lambda self, experiment: points)
    (label, mean), *rest = _mean_of_decay(Results(tmp_path), "IRIS_FF").items()
    assert label == "mean end of weight decay, penalty 0.001"
    assert torch.equal(mean, torch.ones(60, dtype=torch.float64))
    assert rest == []


def test_what_compare_found_is_in_the_section():
    methods, decay = {"sqp": [made_path(9)]}, decay_table(runs=1)
    compared, changed = comparison_table(methods, decay), changes_table(methods, decay, "accuracy")
    row = {"method": "sqp", "run": 0, "seed": 7, "penalty": 0.00251}
    for name in ("loss", "squared_norm", "objective", "test_loss", "test_metric"):
        row |= {f"walk_{name}": 0.25, f"decay_{name}": 0.5}
    after = walk_table({"sqp, from weight decay's best": methods["sqp"]})
    section = comparison_section(compared, changed, decay, pd.DataFrame([row]), after)
    equal, gained = section.tables[2:]
    assert equal.rows == [["sqp, seed 7", "0.00251", *["0.25", "0.5"] * 5]]
    assert equal.columns[2:4] == ["loss, walk", "loss, weight decay"]
    assert gained.columns == ["", "sqp, from weight decay's best (1 run)"]
    assert gained.rows[0] == ["R, start", "300"]
