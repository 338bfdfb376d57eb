"""What the report writes, and what it says of results that are not whole."""

import base64
import dataclasses
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path as FilePath

import matplotlib.image
import numpy as np
import pandas as pd
import plotly.offline
import pytest
from matplotlib.figure import Figure
from tests.report.made import FAILURE, decay_ends, made_path, undrawn, write_run

from isoloss import Outcome, open_results
from isoloss.disk import Stamp
from isoloss.files import write_json
from isoloss.report import outcome_table, pca, report, save
from isoloss.report.chapter import FILES, report_tables, settings_table
from isoloss.report.page import Chapter, Picture, Section, Table, load_chapter, write_page
from isoloss.report.tables import Runs
from isoloss.report.verify import check_reports
from isoloss.store import Results, ResultsError, run_folder
from isoloss.store.folder import begin

NOTHING = pd.DataFrame()
DECAYED = "mean end of weight decay, penalty 0.001"  # of the one run in which it is finite


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
    return load_chapter(reported.page.parent / "IRIS_FF")


def table(chapter, title):
    return next(t for s in chapter.sections for t in s.tables if t.title == title)


@pytest.mark.slow
def test_every_figure_is_there_as_png_and_pdf(reported):
    stems = [
        "walk", "walk-evaluations", "walk-arc-length", "walk-regularizer", "pca-sqp",
        "pca-sqp-unscaled", "variance-sqp", "pca-paper", "pca-paper-unscaled", "variance-paper",
        "comparison", "decay",
    ]  # fmt: skip
    names = {file.name for file in reported.figures}
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("png", "pdf")}
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
    assert text.index("took the squared norm from") < text.index("Every run and its outcome")


def test_the_page_says_what_to_do_by_command_about_how_a_run_ended(tmp_path):
    ended = f"Too few. {Outcome.STEP_LIMIT.remedy}"
    write_run(tmp_path, dataclasses.replace(made_path(5), message=ended), 0)
    with undrawn():
        report(Results(tmp_path), "IRIS_FF")
    chapter = load_chapter(tmp_path / "report" / "IRIS_FF")
    reasons = table(chapter, "Why each run ended").rows
    assert reasons == [["sqp run-000", "Too few. To go on, raise --set steps=N."]]
    assert open_results(tmp_path).paths("IRIS_FF", "sqp")[0].message == ended


def test_numbers_and_settings_of_a_run_are_those_of_its_walk(chapter):
    runs = table(chapter, "Every run and its outcome")
    row = dict(zip(runs.columns, runs.rows[2], strict=True))
    end = made_path(45, 1).steps.iloc[-1]
    assert row["run"] == "sqp run-001"
    assert (row["seed"], row["steps"], row["evaluations"]) == ("8", "44", "89")
    assert row["R"] == f"301 → {end['regularizer']:.4g}"
    assert row["test loss"] == f"0.46 → {end['test_loss']:.4g}"
    settings = table(chapter, "Settings, seeds and versions")
    assert settings.columns == ["setting", "paper", "sqp"]
    assert ["seed", "7", "7, 8, 9"] in settings.rows
    assert ["isoloss", "0.0", "0.0"] in settings.rows


def with_metadata(path, **config):
    metadata = {"config": config, "made_with": {"torch": "9"}, "folder": "out/run-004"}
    return dataclasses.replace(path, metadata=metadata)


def test_outcomes_and_settings_of_walked_failed_and_unfinished_runs():
    path = made_path(9, 2)
    path.steps.loc[8, ["test_loss", "loss"]] = np.nan
    stop = {"steps": 5, "seconds": None}
    walks = [with_metadata(one, seed=seed, stop=stop) for one, seed in ((path, 3), (path, 4))]
    methods = {"sqp": walks[:1], "paper": [made_path(5, 1, "paper")]}
    reasons = {"sqp": {"run-001": "no memory", "run-009": "not finished"}}
    table = outcome_table(methods, reasons).set_index(["method", "run"])
    assert table.index.tolist() == [
        ("paper", "run-000"), ("sqp", "run-001"), ("sqp", "run-004"), ("sqp", "run-009")
    ]  # fmt: skip
    walked, unfinished = table.loc["sqp", "run-004"], table.loc["sqp", "run-009"]
    assert (walked["seed"], walked["steps"], walked["R_start"]) == (3, 8, 302)
    assert walked["outcome"] == "converged"
    assert walked["test_loss_end"] == path.steps["test_loss"][7]  # the last that was measured
    assert walked["R_end"] == path.steps["regularizer"][8]
    assert walked["kkt_residual"] == path.steps["kkt_residual"][8]
    assert table.loc[("sqp", "run-001"), ["outcome", "message"]].tolist() == ["failed", "no memory"]
    assert unfinished["outcome"] == "not finished"
    assert pd.isna(unfinished["R_end"])
    settings = settings_table({**methods, "sqp": walks})
    assert settings["sqp"].to_dict() == {
        "seed": "3, 4", "stop steps": "5", "stop seconds": "none", "torch": "9"
    }  # fmt: skip
    assert settings["paper"]["seed"] == "not recorded"


def test_the_page_is_sound_accessible_and_complete_in_itself(page, reported):
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    images = page.of("img")
    assert len(images) == 12
    assert all(len(image["alt"]) > 40 for image in images)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    (packed,) = re.findall('id="plotly">(.*?)<', reported.page.read_text(encoding="utf-8"))
    code = zlib.decompress(base64.b64decode(packed)).decode()
    assert code == plotly.offline.get_plotlyjs()
    assert reported.page.stat().st_size < 4e6


def test_a_scene_holds_the_points_and_what_was_measured_there(chapter):
    scene = next(s for part in chapter.sections for s in part.scenes if "sqp" in s.title)
    path, shown = made_path(45, 1), scene.runs[1]
    assert shown.step == list(range(45))
    assert shown.values["R"] == pytest.approx(path.steps["regularizer"].tolist(), rel=1e-5)
    assert len(shown.scaled) == len(shown.unscaled) == 6
    assert {mark.name for mark in scene.marks} == {
        "mean end of the walks", "mean of run 0", "mean of run 1", "mean of run 2", DECAYED
    }  # fmt: skip
    mean = next(mark for mark in scene.marks if mark.name == "mean of run 1").unscaled
    assert mean == pytest.approx([sum(c) / 45 for c in shown.unscaled], abs=1e-3)
    other = next(mark for mark in scene.marks if mark.name == DECAYED).unscaled
    found = pca([made_path(40 + 5 * k, k).points for k in range(3)], scaled=False)
    assert other == pytest.approx(found.transform(decay_ends(0)[1:])[0][:6], rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_one_run_of_one_point_is_reported_without_band_std_or_components(tmp_path):
    write_run(tmp_path, made_path(1), 0)
    with undrawn("pdf"):
        written = report(open_results(tmp_path), "IRIS_FF")
    (reason,) = (one for one in written.missing if "principal components of sqp" in one)
    assert "at least two" in reason
    chapter = load_chapter(written.page.parent / "IRIS_FF")
    assert "so no standard deviation" in table(chapter, "Start and end").caption
    assert 'id="plotly"' not in written.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_walks_without_test_set_and_methods_without_walk_are_reported(tmp_path):
    path = made_path(12)
    steps = path.steps.drop(columns=["test_loss", "test_metric"])
    write_run(tmp_path, dataclasses.replace(path, steps=steps), 0)
    begin(run_folder(tmp_path, "IRIS_FF", "paper", 0), {}, {})
    with undrawn("pdf"):
        written = report(open_results(tmp_path), "IRIS_FF")
    assert written.missing == [
        "IRIS_FF, paper, run-000: not finished",
        "IRIS_FF, paper: no walk yet",
        "IRIS_FF: no weight decay yet, make it with 'isoloss decay'",
    ]
    chapter = load_chapter(written.page.parent / "IRIS_FF")
    assert table(chapter, "Every run and its outcome").rows[1][2:4] == ["-", "-"]


def test_the_page_holds_all_experiments_reported_so_far(tmp_path):
    for name in ("MPG_FF", "IRIS_FF"):
        (tmp_path / name).mkdir()
        chapter = Chapter(experiment=name, lead="<b>", missing=[], sections=[])
        write_json(tmp_path / name / "chapter.json", chapter.model_dump())
    page = Elements(write_page(tmp_path).read_text(encoding="utf-8"))
    assert [article["id"] for article in page.of("article")] == ["IRIS_FF", "MPG_FF"]
    assert page.text.count("<b>") == 2  # no tag of ours


def test_a_damaged_chapter_is_named_and_the_page_left_alone(tmp_path, refuses):
    (tmp_path / "IRIS_FF").mkdir()
    (tmp_path / "IRIS_FF" / "chapter.json").write_text('{"format_version": 1}')
    (tmp_path / "index.html").write_text("before")
    with refuses("isoloss report IRIS_FF", error=ResultsError):
        write_page(tmp_path)
    assert (tmp_path / "index.html").read_text() == "before"


def test_the_section_on_weight_decay_says_what_was_run_and_lost(chapter):
    section = next(s for s in chapter.sections if s.title == "The walks beside weight decay")
    assert section.text[0] == (
        "Weight decay from 2 random starts with penalties 0, 1e-3, for 4 epochs. 1 of 4 networks "
        "became infinite or not a number and are counted as lost."
    )
    assert "smallest mean test loss of weight decay is 0.41, at penalty 1e-3" in (
        section.pictures[0].alt
    )
    networks = table(chapter, "Every network, mean over the runs")
    assert [row[0] for row in networks.rows][-2:] == ["weight decay, 0", "weight decay, 0.001 (t)"]


def test_what_is_not_there_is_refused(tmp_path, refuses):
    with refuses("IRIS_F", "IRIS_FF"):
        report(Results(tmp_path), "IRIS_F")
    with refuses("isoloss traverse IRIS_FF"):
        report(Results(tmp_path), "IRIS_FF")


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d"])
def test_no_name_is_a_formula_in_a_spreadsheet(sign):
    paths = [made_path(5), made_path(6, 1)]
    runs = Runs("mine", "metric", "", {f"{sign}1+1": paths}, NOTHING, {}, {})
    files = report_tables(runs)[1].items()
    tables = [pd.read_csv(io.StringIO(text)) for name, text in files if name.endswith(".csv")]
    cells = {x for table in tables for x in table.to_numpy().ravel() if isinstance(x, str)}
    assert f"'{sign}1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\uff1d"))]


def chapter_with(folder, file, content=b""):
    folder.mkdir(parents=True, exist_ok=True)
    stamps = {"png": Stamp.of(content), "pdf": Stamp.of(b"")}
    section = Section(title="a", pictures=[Picture(file=file, title="b", alt="c", **stamps)])
    chapter = Chapter(experiment="X", lead="", missing=[], sections=[section])
    write_json(folder / "chapter.json", chapter.model_dump())


@pytest.mark.parametrize(
    "name",
    [
        "../s.png",
        "{}/s.png",
        "in/s.png",
        "..\\s.png",
        "link",
        "..",
        "../X/o.png",
        "{}/report/X/o.png",
    ],
)
def test_a_received_chapter_shows_no_file_of_this_machine(tmp_path, name, refuses, reported):
    content = (reported.page.parent / "IRIS_FF" / "walk.png").read_bytes()
    folder = tmp_path / "report" / "X"
    chapter_with(folder, name.format(folder.parent if name == "{}/X/o.png" else tmp_path))
    (folder / "in").mkdir()
    for place in (tmp_path, tmp_path / "report", folder / "in"):
        (place / "s.png").write_bytes(content)
    for own in ("..\\s.png", "o.png"):
        (folder / own).write_bytes(content)
    (folder / "link").symlink_to(tmp_path / "s.png")
    with refuses("directly beside", "isoloss report X", error=ResultsError):
        write_page(tmp_path / "report")
    assert not (tmp_path / "report" / "index.html").exists()


@pytest.mark.parametrize(("content", "words"), [(None, "is missing"), (b"GIF89a", "not a PNG")])
def test_a_figure_that_is_missing_or_no_picture_is_named(tmp_path, content, words, refuses):
    chapter_with(tmp_path / "X", "walk.png")
    if content:
        (tmp_path / "X" / "walk.png").write_bytes(content)
    with refuses("walk.png", words, "isoloss report X", error=ResultsError):
        write_page(tmp_path)


@pytest.mark.parametrize("file", ["walk.png", "pca-sqp.pdf", "decay.png"])
def test_a_figure_that_was_changed_is_named_by_the_page_and_by_verify(
    tmp_path, reported, file, refuses
):
    folder = tmp_path / "report" / "IRIS_FF"
    shutil.copytree(reported.page.parent / "IRIS_FF", folder)
    write_page(tmp_path / "report")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with refuses(file, "checksum differs", "isoloss report IRIS_FF", error=ResultsError):
        write_page(tmp_path / "report")
    for table in FILES:
        (folder / table).unlink(missing_ok=True)
    (problem,) = [check.problem for check in check_reports(tmp_path) if check.problem]
    assert file in problem


def test_a_figure_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    figure = Figure(figsize=(1, 1))
    before = [file.read_bytes() for file in save(figure, tmp_path, "one")]

    def draws(file, **_):
        FilePath(file).write_bytes(b"half of it")
        raise RuntimeError("no font")

    figure.savefig = draws
    with pytest.raises(RuntimeError, match="no font"):
        save(figure, tmp_path, "one")
    assert [(tmp_path / f"one.{end}").read_bytes() for end in ("png", "pdf")] == before
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("name", ["../one", "", "a/b", "a\0b", "x" * 300])
def test_the_name_of_a_figure_is_that_of_a_file(tmp_path, name, refuses):
    with refuses("name must be that of a file"):
        save(Figure(figsize=(1, 1)), tmp_path, name)


@pytest.mark.parametrize("name", ["\\input{/etc/passwd}", "[3cm]", "$x$ %", "~^_{}&#"])
def test_no_name_is_a_command_in_latex_or_markup_in_markdown(name):
    latex = Table(title="", columns=["", name], rows=[[name, f"1\n{name}"]]).latex()
    safe = (
        r"[^\\{}$&#%_^~\[]|\\[#$%&_{}]|\{\[\}"
        r"|\\text(?:backslash|asciitilde|asciicircum|less|greater)\{\}"
    )
    rows = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\scriptsize ", "")
    cells = re.split(r" & | \\\\(?:\[2pt\])?\n", rows.strip() + "\n")
    assert len(cells) == 5
    assert [cell for cell in cells if not re.fullmatch(f"(?:{safe})*", cell)] == []
    marked = Table(title="", columns=["a"], rows=[["<script>`[x](y)|"]]).markdown()
    assert r"\<script>\`\[x](y)\|" in marked


@pytest.mark.slow
def test_without_the_extra_there_are_tables_and_a_sentence_for_figures():
    code = """if True:
        import sys
        for name in ("matplotlib", "plotly", "jinja2"):
            sys.modules[name] = None
        import pandas as pd, pathlib
        from tests.report.made import made_path
        from isoloss import InputError
        from isoloss.report import plot
        from isoloss.report.chapter import report_tables
        from isoloss.report.page import write_page
        from isoloss.report.tables import Runs
        from isoloss.report.verify import verify
        runs = Runs("mine", "metric", "", {"sqp": [made_path(5)]}, pd.DataFrame(), {}, {})
        assert len(report_tables(runs)[1]) == 8
        for draw in (lambda: plot(made_path(5)), lambda: write_page(pathlib.Path())):
            try:
                draw()
            except InputError as error:
                print(error)
    """
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert said.splitlines() == [
        f"{name} is not installed; pip install 'isoloss[report]'"
        for name in ("matplotlib", "jinja2")
    ]


@pytest.mark.parametrize(
    "link", ["report", *(f"report/IRIS_FF{one}" for one in ("", "/walk.png", "/.a.part", "/in/x"))]
)
def test_no_link_of_a_received_report_is_followed(tmp_path, link, refuses):
    write_run(tmp_path / "out", made_path(), 0)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    place = tmp_path / "out" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = "." not in place.name
    place.symlink_to(tmp_path / "outside" if folder else tmp_path / "outside" / "mine")
    with refuses(f"{place} is a symbolic link", error=ResultsError):
        report(open_results(tmp_path / "out"), "IRIS_FF")
    assert [file.name for file in (tmp_path / "outside").iterdir()] == ["mine"]
    assert (tmp_path / "outside" / "mine").read_text() == "mine"


def test_the_chapter_of_another_experiment_behind_a_link_is_not_shown(tmp_path, refuses):
    chapter = Chapter(experiment="X", lead="", missing=[], sections=[])
    (tmp_path / "outside").mkdir()
    write_json(tmp_path / "outside" / "chapter.json", chapter.model_dump())
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "X").symlink_to(tmp_path / "outside")
    with refuses("report/X is a symbolic link", error=ResultsError):
        write_page(tmp_path / "report")


def test_what_is_left_out_is_said_and_has_not_failed():
    reasons = {"run-007": "left out: it is a copy of run-000", "run-008": "no memory"}
    table = outcome_table({"sqp": []}, {"sqp": reasons})
    assert table["outcome"].tolist() == ["left out", "failed"]
    assert table["message"].tolist() == ["it is a copy of run-000", "no memory"]
