"""Take the pictures of the pages: `make docs-images`, from the demo's failing pair.

The pair is audited once more, with token data. A headless Chromium opens its report and explanation as `atlas report`
and `atlas explain` write them. The annotated pictures carry numbered callouts, which docs/reading.md explains; each is
drawn at the element it speaks of.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from moe_atlas.cli import run
from moe_atlas.errors import Exit

DEMO = Path("demo")
PAGES = Path("build/pictures")
PROBE = ["--probe", str(DEMO / "probes.yaml"), "--policy-from", str(DEMO / "policy.yaml")]
IMAGES = Path("docs/images")

# Number to the first element that matches, and how far right of its left edge the number stands.
VERDICT_CALLOUTS = {
    1: (".verdict .word", -34),
    2: (".verdict .told li", -34),
    3: (".verdict .top th", -34),
    4: (".verdict .why li", -44),
    5: (".verdict ol li", -44),
}
LAYER_CALLOUTS = {
    8: (".legend", 400),
    9: (".heat tbody td.fail", 6),
    10: (".heat tbody abbr", 15),
    11: (".heat tfoot td", 6),
}

DAMAGE_CALLOUTS = {
    6: ("#domains + .charts figcaption", -26),
    7: ("#domains + .charts figure + figure figcaption", -26),
}

DRAW = """(callouts) => {
  for (const [number, [selector, right]] of Object.entries(callouts)) {
    const box = document.querySelector(selector).getBoundingClientRect();
    const one = document.createElement('span');
    one.textContent = number;
    one.style.cssText = `position:absolute; left:${box.left + scrollX + right}px; top:${box.top + scrollY - 1}px;
      width:26px; height:26px; border-radius:50%; background:#0b57d0; color:#fff; border:2px solid #fff;
      font:700 15px/22px system-ui, sans-serif; text-align:center; z-index:99; box-sizing:border-box;
      box-shadow:0 1px 3px rgba(0,0,0,.5)`;
    document.body.append(one);
  }
}"""


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: file name.
        width: of the window, CSS pixels.
        theme: light or dark.
        begin: selector of the element it starts at; None is the top of the page.
        end: selector of the first element that it leaves out.
        callouts: as above.
        page: the page that is opened.
    """

    name: str
    width: int
    theme: Literal["light", "dark"]
    end: str
    begin: str | None = None
    callouts: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    page: Literal["report", "explained"] = "report"


SHOTS = (
    Shot("verdict.png", 1000, "light", "nav"),
    Shot("report-light.png", 1280, "light", "#occupancy"),
    Shot("report-dark.png", 1280, "dark", "#occupancy"),
    Shot("report-phone-light.png", 390, "light", "#predicates"),
    Shot("report-phone-dark.png", 390, "dark", "#predicates"),
    Shot("reading-verdict.png", 1100, "light", "nav", callouts=VERDICT_CALLOUTS),
    Shot("reading-damage.png", 1280, "light", "#predicates", "#domains", DAMAGE_CALLOUTS),
    Shot("reading-layers.png", 1280, "light", "#occupancy", "#layers", LAYER_CALLOUTS),
    Shot("explained-documents.png", 1000, "light", "#documents ~ .scroll ~ .scroll", page="explained"),
    Shot("explained-tokens.png", 1000, "light", "#text ~ h3 ~ h3", "#text", page="explained"),
    Shot("explained-flows.png", 1000, "light", "footer", "#flows", page="explained"),
)


def take(browser: Browser, opened: Path, shot: Shot, target: Path) -> None:
    """Open the page, draw the callouts, write the part of it that is wanted."""
    context: Any = browser.new_context(
        viewport={"width": shot.width, "height": 900}, color_scheme=shot.theme, offline=True
    )
    page = context.new_page()
    page.goto(opened.resolve().as_uri())
    page.evaluate(DRAW, {str(number): place for number, place in shot.callouts.items()})
    top = page.locator(shot.begin).first.bounding_box()["y"] if shot.begin else 0
    bottom = page.locator(shot.end).first.bounding_box()["y"]
    page.screenshot(
        path=target, full_page=True, clip={"x": 0, "y": top, "width": shot.width, "height": bottom - top}
    )
    context.close()
    Image.open(target).convert("RGB").quantize(64, method=Image.Quantize.FASTOCTREE).save(
        target, optimize=True
    )


def write_pages() -> None:
    """Audit the failing pair with token data, and write its report and its explanation."""
    PAGES.mkdir(parents=True, exist_ok=True)
    receipt = str(PAGES / "hard.receipt.json")
    pair = [str(DEMO / "base"), str(DEMO / "hard")]
    for arguments, expected in (
        (["audit", *pair, *PROBE, "--receipt", receipt, "--tokens"], Exit.FAIL),
        (["report", receipt, "-o", str(PAGES / "report.html")], Exit.PASS),
        (["explain", receipt, *PROBE, "-o", str(PAGES / "explained.html")], Exit.PASS),
    ):
        if run([*arguments, "--force"]) != expected:
            raise SystemExit(f"atlas {' '.join(arguments)} did not end with {expected:d}")


def main() -> int:
    """Take every picture."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (DEMO / "hard.receipt.json").exists() or chromium is None:
        print(f"needs {DEMO} (make demo) and Chromium (apt-get install chromium)", file=sys.stderr)
        return 1
    write_pages()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for shot in SHOTS:
            take(browser, PAGES / f"{shot.page}.html", shot, IMAGES / shot.name)
            print(f"wrote {IMAGES / shot.name}")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
