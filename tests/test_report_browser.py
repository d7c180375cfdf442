"""The report in a browser without a network: every figure drawn, nothing requested, readable at any width, at night."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import confirm

from benchmarks.big_run import make
from tune import figures, figures_search, report
from tune.report_data import read

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
TEXTS = (
    "p, li, td, th, figcaption, dt, dd, a, h1, h2, h3, code, .plot .xtick text, .plot .ytick text, .plot .legend text"
)

CONTRASTS = """(selector) => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(selector)].filter((e) => e.textContent.trim()).map((e) => {
    const style = getComputedStyle(e);
    const pair = [light(parse(e.namespaceURI.endsWith("svg") ? style.fill : style.color)), light(behind(e))];
    return [e.tagName, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure that there is, of a confirmed run and its copy; names that are no markup."""
    run = make(tmp_path_factory.mktemp("browser"), 60).path
    confirm(run)
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "dataset": "<b>data</b>" * 40}))
    other = Path(shutil.copytree(run, run.parent / "<img src=x onerror=alert(1)>"))
    assert read(other).confirm
    out = run.parent / "report.html"
    report.main(report.Options(runs=(str(run), str(other)), out=out))
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, file: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page with all figures drawn, and what went wrong: errors and requests."""
    page = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(file.as_uri())
    page.wait_for_selector(".plot:not(:has(.main-svg))", state="detached", timeout=120_000)
    return page, wrong


@pytest.mark.parametrize("width", [390, 1440])
def test_every_figure_is_drawn_and_nothing_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    page, wrong = opened(browser, page_file, width)
    plots = page.locator(".plot").count()
    assert plots == page.locator("figcaption").count() >= 24
    assert page.locator(".plot:has(.main-svg .trace)").count() == plots
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#no-figures").is_hidden()
    assert not wrong


def test_contrast_in_the_dark(browser: Any, page_file: Path) -> None:
    page, wrong = opened(browser, page_file, 1440, "dark")
    found = page.evaluate(CONTRASTS, TEXTS)
    assert len(found) > 200 and {"text", "TD", "FIGCAPTION", "A"} <= {tag for tag, _ in found}
    assert min(found, key=lambda each: each[1])[1] >= 4.5
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert not wrong


def test_keyboard_and_print(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page, _ = opened(browser, page_file, 1440, "dark")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(page.evaluate(CONTRASTS, TEXTS), key=lambda each: each[1])[1] >= 4.5
    page.emulate_media(media="screen")
    widths = "[...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.clientWidth)"
    on_screen = page.evaluate(widths)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert max(page.evaluate(widths)) <= 680  # the width of a sheet of A4 between its margins
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(widths) == on_screen
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n") > 5


def test_figures_for_papers_are_as_high_as_in_the_page(page_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    data = read(page_file.parent / "big")
    drawn = {"low": figures_search.rungs(data), "high": figures_search.curves(data)}
    assert figures.save(drawn.items(), tmp_path) == 2
    heights = {}
    for name, picture in drawn.items():
        assert picture.figure
        box = re.search(r'viewBox="0 0 720 (\d+)"', (tmp_path / f"{name}.svg").read_text())
        heights[name] = int(box[1]) if box else None
        assert heights[name] == picture.figure.layout.height and (tmp_path / f"{name}.png").exists()
    assert heights["low"] != heights["high"]
