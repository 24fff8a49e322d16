"""The pages in a real browser, at the widths of a desktop and a phone: no script error, and what a click does."""

import html
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from ppdet_lite.data.checking.check import check, check_set
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.reporting import compare, data_page, report
from tests.data.conftest import CocoFiles
from tests.reporting.random_scene import IDS, random_scene
from tests.reporting.scenes import read_scene, write_scene

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (1280, 390)
PAGES = {"report": report.PAGE, "comparison": compare.PAGE, "check": data_page.PAGE}
COLLECT = '<script>const errors = []; addEventListener("error", (event) => errors.push(event.message));</script>'
PROBE = """<script>addEventListener("load", () => {
const root = document.documentElement, viewer = document.querySelector("dialog");
const seen = {width: innerWidth, overflow: root.scrollWidth - innerWidth, figures: 0, sorted: []};
for (const picture of document.querySelectorAll("figure img")) {
  picture.click();
  seen.figures += viewer.open && viewer.querySelector("img").src === picture.src;
  viewer.click();
}
seen.closed = !viewer.open;
document.querySelector("figure img").click();
viewer.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
seen.next = viewer.querySelector("img").src === document.querySelectorAll("figure img")[1].src;
viewer.close();
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button")[1].click();
  seen.sorted.push([...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value)));
}
const links = [...document.querySelectorAll('a[href^="#"]')];
seen.lost = links.filter((link) => !document.getElementById(link.hash.slice(1))).length;
seen.links = links.length;
seen.errors = errors;
parent.postMessage([location.hash, seen], "*");
});</script>"""
FRAMES = """<script>
const seen = {}, frames = %s;
addEventListener("message", ({data: [name, values]}) => {
  seen[name] = values;
  if (Object.keys(seen).length === frames.length) document.body.textContent = JSON.stringify(seen);
});
for (const [file, name, width] of frames) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; height: 900px; width: ${width}px`;
  frame.src = `${file}#${name}-${width}`;
  document.body.append(frame);
}
</script>"""  # frames, since a window is at least 500 pixels wide


def write_pages(folder):
    """Write the three pages into folders with their names."""
    objects, detections = random_scene(1)
    write_scene(folder, objects, detections)
    for number in IDS:
        noise = np.random.default_rng(number).integers(0, 256, (200, 300, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.jpg"), noise)
    dataset, *_ = read_scene(folder)
    results = folder / "bbox.json"
    cv2.imwrite(str(folder / "curves.png"), np.full((90, 900, 3), 200, np.uint8))
    report.write_report(folder / "report", dataset, results, score_file(dataset, results))
    compare.compare_runs(dataset, [results, results], folder=folder / "comparison", selections=10)
    files = CocoFiles(folder / "set", [(40, 60)] * 3)
    shutil.copy(files.images / "0.png", files.images / "1.png")
    files.add(0, [5, 5, 30, 20], 3)
    files.write()
    found = check([check_set("data", str(files.images), str(files.json))], lambda: None)
    data_page.write_report(found, folder / "check")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open each page at each width; return the pages, what the probe saw, and the messages of the console."""
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH")
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder)
    pages = {name: (folder / name / file).read_text(encoding="utf-8") for name, file in PAGES.items()}
    for name, page in pages.items():
        probed = page.replace("<head>", f"<head>{COLLECT}", 1).replace("</body>", f"{PROBE}</body>")
        (folder / f"{name}.html").write_text(probed, encoding="utf-8")
    frames = [(f"{name}.html", name, width) for name in PAGES for width in WIDTHS]
    (folder / "frames.html").write_text(f"<!DOCTYPE html><body>{FRAMES % json.dumps(frames)}</body>", encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    command += [(folder / "frames.html").as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r"<body>(\{.*\})</body>", run.stdout, re.DOTALL)
    assert found is not None, console
    return pages, json.loads(html.unescape(found[1])), console


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_works(opened, name, width):
    pages, probes, console = opened
    page, seen = pages[name], probes[f"#{name}-{width}"]
    assert console == [] and seen["errors"] == [] and seen["width"] == width
    assert seen["overflow"] <= 0  # wide tables scroll by themselves
    assert seen["figures"] == page.count("<figure") and seen["closed"] and seen["next"]
    for values in seen["sorted"]:
        assert values == sorted(values, reverse=True)
    assert len(seen["sorted"]) == {"report": 2, "comparison": 1, "check": 0}[name]
    assert seen["lost"] == 0 and (seen["links"] > 0) == (name == "report")
