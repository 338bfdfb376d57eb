"""The report page in headless Chromium: quiet, complete in itself, and to be rotated."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from tests.report.made import made_path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; install Debian's package chromium"
)
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
DRAWN = "document.querySelector('.plot')._fullLayout?.scene?._scene?.glplot"
EYE = "(() => { const e = document.querySelector('.plot')._fullLayout.scene._scene" + (
    ".getCamera().eye; return [e.x, e.y, e.z]; })()"
)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield launched
        launched.close()


class Watched:
    """A page with everything it asked for and complained of."""

    def __init__(self, browser, file, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type == "error" else None,
        )
        self.page.goto(file.as_uri())

    def draw(self):
        """Bring the first scene into view and wait until it is drawn; where it is."""
        plot = self.page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        self.page.wait_for_function(DRAWN)
        self.page.wait_for_timeout(300)
        return plot.bounding_box()

    def picture(self, box):
        return np.asarray(
            Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB"), int
        )


@pytest.fixture(scope="module")
def wide(browser, reported):
    watched = Watched(browser, reported.page, viewport={"width": 1000, "height": 900})
    yield watched
    watched.context.close()


@pytest.fixture(scope="module")
def box(wide):
    return wide.draw()


def test_hovering_a_point_shows_step_loss_regularizer_and_test_loss(wide, box):
    picture = wide.picture(box)
    # the first point of the walk by paper has the color of the start
    ys, xs = np.nonzero(np.abs(picture - [0x44, 0x01, 0x54]).max(axis=2) < 12)
    assert len(xs) > 5
    for x, y in ((xs[0], ys[0] + 2), (xs[-1], ys[-1] - 1), (xs.mean(), ys.mean())):
        wide.page.mouse.move(box["x"] + float(x), box["y"] + float(y))
        wide.page.wait_for_timeout(400)
        shown = wide.page.locator(".hovertext").all_text_contents()
        if shown:
            break
    found = re.fullmatch(
        r"run 0, step (\d+)(?:.*)R ([\d.]+)(?:.*)loss 0\.25test loss ([\d.]+)test metric [\d.]+",
        shown[0].replace("\n", ""),
    )
    assert found, shown
    row = made_path(30, 5, "paper").steps.iloc[int(found[1])]
    assert float(found[2]) == pytest.approx(row["regularizer"], rel=1e-4)
    assert float(found[3]) == pytest.approx(row["test_loss"], rel=1e-4)


def test_dragging_turns_the_scene(wide, box):
    before, eye = wide.picture(box), np.array(wide.page.evaluate(EYE))
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    wide.page.mouse.move(*middle)
    wide.page.mouse.down()
    wide.page.mouse.move(middle[0] + 150, middle[1] + 30, steps=8)
    wide.page.mouse.up()
    wide.page.wait_for_timeout(500)
    turned = np.array(wide.page.evaluate(EYE))
    assert np.linalg.norm(turned - eye) > 0.3
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(eye), rel=0.02)  # no zoom
    assert (np.abs(wide.picture(box) - before).max(axis=2) > 40).mean() > 0.001


def test_the_slider_goes_back_to_the_start(wide, box):
    readout = wide.page.locator(".readout").first
    first, last = (made_path(30, 5, "paper").steps["regularizer"].iloc[at] for at in (0, -1))
    assert f"{last:.5g}" in readout.inner_text()
    wide.page.locator("[name=position]").first.focus()
    wide.page.keyboard.press("Home")
    assert re.search(rf"run 0\s+0\s+{first:g}\s", readout.inner_text())


def test_other_components_and_coordinates_can_be_chosen(wide, box):
    scene = wide.page.locator(".scene").first
    assert "divided by its standard deviation" in scene.locator("figcaption").inner_text()
    title = "document.querySelector('.plot')._fullLayout.scene.xaxis.title.text"
    assert wide.page.evaluate(title) == "component 1"
    scene.locator("[name=view]").select_option("4")
    assert wide.page.evaluate(title) == "component 4"
    scene.locator("[name=scaling]").select_option("unscaled")
    assert "not scaled" in scene.locator("figcaption").inner_text()
    assert scene.locator("[name=view]").input_value() == "4"


def test_no_request_leaves_the_page_and_no_error_is_logged(wide, box, reported):
    assert wide.requests[0] == reported.page.as_uri()
    assert all(url.startswith(("data:", "blob:")) for url in wide.requests[1:])
    assert wide.errors == []
    assert wide.page.title() == "isoloss report: IRIS_FF"  # the failure's text stayed text


@pytest.mark.slow
def test_on_a_laptop_no_table_is_cut_off(browser, reported):
    watched = Watched(browser, reported.page, viewport={"width": 1280, "height": 800})
    watched.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    cut = watched.page.evaluate(
        """[...document.querySelectorAll('.scroll')].filter((s) => s.scrollWidth > s.clientWidth)
        .map((s) => s.getAttribute('aria-label'))"""
    )
    assert cut == []
    watched.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width_nothing_sticks_out_and_text_is_legible(browser, reported, scheme):
    watched = Watched(
        browser, reported.page, viewport={"width": 390, "height": 844}, color_scheme=scheme
    )
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in ("body", ".lead", ".missing", "nav a", "thead th", ".caption"):
        ink, paper = watched.page.evaluate(
            """(selector) => {
                const element = document.querySelector(selector);
                let under = element;
                const clear = (e) => getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)";
                while (clear(under) && under.parentElement) under = under.parentElement;
                return [getComputedStyle(element).color, getComputedStyle(under).backgroundColor];
            }""",
            selector,
        )
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    assert (luminance(paper) < 0.2) == (scheme == "dark")
    assert watched.errors == []
    watched.context.close()


def luminance(color):
    """Relative luminance (WCAG 2.1) of a CSS color rgb(r, g, b)."""
    values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
