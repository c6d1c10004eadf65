"""report.html in a real browser: no request, no error, no scrolling sideways, readable by all (axe-core), printable."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from cases import CASES
from playwright.sync_api import Browser, Page, sync_playwright

from jobs import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A profile of its own and no background traffic: nothing but the page may talk.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
WIDTHS = (360, 1280)
# Cases that look different from each other; the others differ in words.
LOOKED_AT = (
    "finished",
    "too few patients",
    "markup as names",
    "other alphabets",
    "thousands of bad images",
    "searched",
)
OUTCOMES = (
    "() => ({width: document.documentElement.scrollWidth, bare: [...document.images].filter(i => !i.alt).length})"
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    place = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if place is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=place, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=LOOKED_AT)
def file(request, decided, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("shown") / "work"
    shutil.copytree(decided, work, ignore=shutil.ignore_patterns("embeddings"))
    CASES[request.param](work)
    report.main(["--work", str(work)])
    return work / "results/report.html"


def opened(browser: Browser, file: Path, width: int, **options: object) -> tuple[Page, list[str]]:
    """The page, and what went wrong or out while it was opened."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    return page, [line for line in heard if line != file.as_uri() and not line.startswith("data:image/")]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_quiet_and_no_wider_than_the_window(browser, file, width):
    page, heard = opened(browser, file, width)
    assert heard == []
    assert page.evaluate(OUTCOMES) == {"width": width, "bare": 0}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(browser, file, scheme):
    page, _ = opened(browser, file, WIDTHS[0] if scheme == "dark" else WIDTHS[1], color_scheme=scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


def test_it_says_the_same_without_its_script(browser, file):
    with_script, _ = opened(browser, file, 1280)
    without, _ = opened(browser, file, 1280, java_script_enabled=False)
    assert with_script.locator("body").inner_text().split() == without.locator("body").inner_text().split()
    with_script.close()
    without.close()


def test_tables_are_sorted_by_keyboard(browser, file):
    page, heard = opened(browser, file, 1280)
    for table in page.locator("table.sortable").all()[:3]:
        for column in range(table.locator("thead button").count()):
            button = table.locator("thead button").nth(column)
            button.focus()
            page.keyboard.press("Enter")
            cells = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
            page.keyboard.press("Enter")
            assert (
                table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts() != cells or len(set(cells)) == 1
            )
            assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    assert heard == []
    page.close()


def test_it_prints_on_a4(browser, file, tmp_path):
    page, _ = opened(browser, file, 1280)
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})  # 180 mm: A4 without margins
    assert page.evaluate(OUTCOMES)["width"] <= 680
    assert os.path.getsize(tmp_path / "report.pdf") > 10_000
    page.close()
