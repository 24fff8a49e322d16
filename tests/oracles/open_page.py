"""Open pages in headless Chromium, wide and narrow: python -m tests.oracles.open_page CHROMIUM PAGE.html ... FOLDER

It fails on a script error, a request for anything else, a picture that cannot be shown, a section that cannot be seen,
a page wider than the window, or a table that does not sort; and leaves screenshots in the folder, to be looked at.
It needs playwright in an environment of its own.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTHS = (1280, 400)


def look(browser: Browser, page: Path, width: int, folder: Path) -> list[str]:
    """What is wrong with a page at a width of the window."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    address = page.resolve().as_uri()
    tab.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on(
        "request",
        lambda request: (
            wrong.append(f"asks for {request.url}")
            if request.url != address and not request.url.startswith("data:")
            else None
        ),
    )
    tab.goto(address)
    if broken := tab.eval_on_selector_all("img", "all => all.filter((i) => !i.complete || !i.naturalWidth).length"):
        wrong.append(f"{broken} pictures are not shown")
    sections = tab.query_selector_all("section")
    wrong += [f"section {section.get_attribute('id')} is not seen" for section in sections if not section.is_visible()]
    if not sections:
        wrong.append("no sections")
    if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
        wrong.append(f"{wide} pixels wide")
    tab.screenshot(path=folder / f"{page.stem}_{width}.png", full_page=True)
    for table in tab.query_selector_all("table.sortable"):
        table.query_selector("th:nth-child(2) button").click()
        cells = table.eval_on_selector_all(
            "tbody td:nth-child(2)", "all => all.map((cell) => Number(cell.dataset.value))"
        )
        if cells != sorted(cells, reverse=True):
            wrong.append("a table does not sort")
    tab.close()
    return wrong


if __name__ == "__main__":
    chromium, *pages, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        found = [
            f"{name} at {width}: {text}"
            for name in pages
            for width in WIDTHS
            for text in look(browser, Path(name), width, Path(target))
        ]
        browser.close()
    print("\n".join(found) or f"{len(pages)} pages at {WIDTHS}: nothing wrong")
    sys.exit(bool(found))
