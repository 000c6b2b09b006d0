"""The pages in a real browser: two widths, both themes, print; no request, no console line, nothing cut off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe_atlas.report.html import audit_page, history_page
from moe_atlas.views.receipt import ReceiptView
from scripts import docs_images
from tests.receipt import synthetic
from tests.report import receipts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
CALLOUTS = docs_images.VERDICT_CALLOUTS | docs_images.DAMAGE_CALLOUTS | docs_images.LAYER_CALLOUTS
A4 = 718  # CSS pixels between the margins of a sheet
PAGES = {
    "fail": lambda: audit_page(
        ReceiptView(receipts.receipt(scale=40.0)),
        Path("receipt.json"),
        synthetic.windows(receipts.facts(), seed=3, scale=40.0),
    ),
    "baseline": lambda: audit_page(ReceiptView(receipts.receipt("baseline")), Path("baseline.json")),
    "hostile": lambda: audit_page(ReceiptView(receipts.hostile()), Path("receipt.json")),
    "history": lambda: history_page(receipts.history()),
}

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module", params=PAGES)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


@pytest.fixture(params=[390, 1280])
def width(request):
    return request.param


@pytest.fixture(params=["light", "dark"])
def opened(request, browser, file, width):
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=request.param, offline=True
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page, said, asked
    context.close()


def test_a_page_loads_quietly_and_fits_its_width(opened, file, width):
    page, said, asked = opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".word").first.bounding_box()["y"] < 200


def test_a_phone_shows_verdict_sentences_and_damage_at_one_look(browser, tmp_path):
    report = tmp_path / "fail.html"
    report.write_text(PAGES["fail"](), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    for selector in (".word", ".told li >> nth=2", ".top tr >> nth=0"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] <= 844, selector
        assert box["x"] + box["width"] <= 390 - 12, selector
    page.close()


LUMINANCE = """(element) => {
  const linear = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b); };
  const ink = light(getComputedStyle(element).color);
  let node = element, back = 'rgba(0, 0, 0, 0)';
  while (node && /, 0\\)$|transparent/.test(back)) {
    back = getComputedStyle(node).backgroundColor;
    node = node.parentElement;
  }
  const page = light(back);
  return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
}"""


def test_lettering_stands_out_in_both_themes(opened):
    page, _, _ = opened
    for selector in (".word", "h1", "p.muted", ".card .mark", "thead th", "a", "summary"):
        for element in page.locator(selector).all()[:4]:
            assert element.evaluate(LUMINANCE) >= 4.5, selector


def test_keyboard_reaches_the_skip_link_first_and_opens_details(opened):
    page, _, _ = opened
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    if page.locator("summary").count() == 0:
        return
    summary = page.locator("summary").first
    before = summary.evaluate("one => one.parentElement.open")
    summary.focus()
    page.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open") is not before


def test_callouts_of_the_pages_find_their_places(browser, tmp_path):
    report = tmp_path / "fail.html"
    report.write_text(PAGES["fail"](), encoding="utf-8")
    page = browser.new_page()
    page.goto(report.as_uri())
    said = Path(docs_images.__file__).parents[1].joinpath("docs/reading.md").read_text()
    for number, (selector, _) in CALLOUTS.items():
        assert page.locator(selector).first.is_visible(), selector
        assert f"\n{number}. **" in said
    for shot in docs_images.SHOTS:
        if shot.page != "report":
            continue
        assert page.locator(shot.end).count() == 1
    page.close()


def test_paper_shows_what_is_folded_on_the_screen(browser, file):
    page = browser.new_page()
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    page.set_viewport_size({"width": A4, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= A4
    for hidden in page.locator("details:not([open]) dl").all():
        assert hidden.bounding_box()["height"] > 20
    assert page.pdf()[:5] == b"%PDF-"
    page.close()
