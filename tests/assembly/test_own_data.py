"""`train --data`: a dataset in any format is recognized, imported once, trained and reported. `eval --annotations`."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from ppdet_lite.assembly.own_data import prepare_own_data
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.reporting.trained_run import report_run
from tests.tiny_run import WITHOUT_STAGE_5
from tests.yolo_folder import write_yolo_folder

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *WITHOUT_STAGE_5,
    "data.preprocess={short_side: 64, long_side: 128}",
    "data.augment.short_sides=[64]",
    "model.neck.out_channels=32",
    "model.box_head.width=32",
    "train={length: 2 iterations, evaluate_every: 1 iterations, checkpoint_every: 1 iterations, rehearse: false}",
]
VOC = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>31</xmax><ymax>22</ymax></bndbox>"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    generate(folder / "shapes", train=10, val=4, seed=3)
    return folder / "shapes"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(shapes, place):
    """Ten images in YOLO's format, in a folder that is not divided."""
    write_yolo_folder(shapes / "train", shapes / "annotations/instances_train.json", place / "photos")
    return Path("photos")


def tool(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / f"tools/{name}.py"), run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code


def content(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def refusal(source, start="random"):
    with pytest.raises(UserError) as caught:
        prepare_own_data(Path(source), start)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_from_a_yolo_folder_to_an_exported_detector_in_two_commands(photos, monkeypatch, capsys):
    """Nothing is written by hand; the second command is the one that the first prints."""
    code = tool(monkeypatch, "train", "--data", photos, "--start", "random", "-o", *TINY)
    out = capsys.readouterr().out
    assert code == 0, out
    run = Path("output/photos/detector_random")
    sets = {name: content(f"dataset/photos/annotations/instances_{name}.json") for name in ("train", "val")}
    assert [len(one["images"]) for one in sets.values()] == [8, 2]
    assert content(run / "report/report.json")["run"]["images"] == 2 and (run / "report/report.html").is_file()
    assert content(run / "metrics.json")["images"] == 2 and f"report: {run}/report/report.html" in out
    assert load_config(run / "config.yml")["data"]["val"]["images"] == "dataset/photos/val"
    export = next(line for line in out.splitlines() if "export-model" in line).split()[2:]
    assert tool(monkeypatch, "export_model", *export, "--count", 1) == 0 and (run / "export/model.pdiparams").is_file()
    assert tool(monkeypatch, "train", "--data", photos, "--start", "random", "-o", *TINY) == 2
    assert "contains a run" in (err := capsys.readouterr().err) and err.count("\n") == 1
    best = run / "checkpoints/best"
    shutil.rmtree(best)
    shutil.copytree(run / "checkpoints/iter_00000001", best)
    (run / "bbox.json").unlink()  # of the second iteration, which is not the best one
    report_run(load_config(run / "config.yml"), run)
    assert "evaluating it again" in capsys.readouterr().out and (run / "bbox.json").is_file()
    assert content(run / "report/report.json")["run"]["weights"] == str(best)


def test_without_a_network_the_error_names_the_other_start(photos, monkeypatch, capsys):
    monkeypatch.setenv("PPDET_LITE_CACHE", "cache")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    assert tool(monkeypatch, "train", "--data", photos, "-o", "train.length=1 iterations") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be downloaded" in err
    assert err.endswith("or start from random weights: ppdet-lite train --data photos --start random\n")
    assert not Path("output").exists()


def test_an_import_is_reused_until_its_source_changes(photos, capsys):
    path = prepare_own_data(photos, "random")
    assert path == Path("dataset/photos/detector_random.yml")
    path.write_text(path.read_text() + "# mine\n")
    before = Path("dataset/photos/train").stat().st_mtime_ns
    assert prepare_own_data(photos, "random").read_text().endswith("# mine\n")
    assert prepare_own_data(photos, "zoo") == Path("dataset/photos/detector.yml")
    assert prepare_own_data(Path("dataset/photos"), "zoo") == Path("dataset/photos/detector.yml")
    assert Path("dataset/photos/train").stat().st_mtime_ns == before
    label = next((photos / "labels").iterdir())
    label.write_text(label.read_text() + "\n")
    message = refusal(photos)
    assert "has changed since it was imported into dataset/photos; delete dataset/photos to import it anew" in message
    shutil.rmtree("dataset/photos")
    prepare_own_data(photos, "random")
    (photos.parent / "other").mkdir()
    photos.rename("other/photos")
    assert "dataset/photos was imported from " in refusal("other/photos")
    Path("dataset/photos/source.json").unlink()
    assert "dataset/photos exists, but was not imported from it by this command" in refusal("other/photos")


def test_a_dataset_below_the_folder_of_imports(photos, monkeypatch):
    Path("dataset").mkdir()
    photos.rename("dataset/photos")
    assert prepare_own_data(Path("dataset/photos"), "random") == Path("dataset/photos_coco/detector_random.yml")
    monkeypatch.chdir("dataset/photos")
    assert "run this in another folder" in refusal(".")


def test_splits_of_the_source_are_kept(photos):
    for name, numbers in {"train": (1, 2, 3), "val": (4, 5)}.items():
        (photos / f"{name}.txt").write_text("".join(f"./images/{number:06d}.jpg\n" for number in numbers))
    data = photos / "data.yaml"
    data.write_text(f"train: train.txt\nval: val.txt\nnames: {(photos / 'classes.txt').read_text().splitlines()}\n")
    config = load_config(prepare_own_data(data, "random"))
    assert [len(content(config["data"][name]["annotations"])["images"]) for name in ("train", "val")] == [3, 2]


def test_coco_files_are_used_in_place(shapes, place):
    shutil.copytree(shapes, "shapes")
    for source in ("shapes", "shapes/annotations/instances_train.json"):
        config = load_config(prepare_own_data(Path(source), "random"))
        for name in ("train", "val"):
            assert config["data"][name]["images"] == f"shapes/{name}"
            assert config["data"][name]["annotations"] == f"shapes/annotations/instances_{name}.json"
    assert not list(Path("shapes").glob("*.yml"))
    assert {path.name for path in Path("dataset").rglob("*") if path.is_file()} == {
        "detector_random.yml",
        "source.json",
    }
    Path("shapes").rename("others")
    Path("other").mkdir()
    Path("others").rename("other/shapes")
    assert "dataset/shapes was imported from " in refusal("other/shapes")


def test_one_coco_file_is_divided_and_its_images_stay(shapes, place):
    given = content(shapes / "annotations/instances_train.json")
    shutil.copytree(shapes / "train", "cells/images")
    Path("cells/all.json").write_text(json.dumps(given | {"info": {"year": 2026}}))
    for source in ("cells/all.json", "cells"):
        path = prepare_own_data(Path(source), "random")
        assert path == Path("dataset", "all" if source.endswith("json") else "cells", "detector_random.yml")
        config = load_config(path)
        parts = [content(config["data"][name]["annotations"]) for name in ("train", "val")]
        assert [len(part["images"]) for part in parts] == [8, 2] and parts[1]["info"] == {"year": 2026}
        for key in ("images", "annotations"):
            merged = sorted((item for part in parts for item in part[key]), key=lambda item: item["id"])
            assert merged == sorted(given[key], key=lambda item: item["id"])
        owners = [{item["id"] for item in part["images"]} for part in parts]
        assert all({item["image_id"] for item in part["annotations"]} <= ids for part, ids in zip(parts, owners))
        assert config["data"]["train"]["images"] == "cells/images"
        assert prepare_own_data(Path(source), "random") == path
        assert load_config(prepare_own_data(path.parent, "zoo"))["data"]["val"]["images"] == "cells/images"


def test_a_coco_file_with_nan_is_divided(shapes, place):
    """Python writes it, and training reads it as a missing value."""
    given = content(shapes / "annotations/instances_train.json")
    given["annotations"][0]["area"] = float("nan")
    shutil.copytree(shapes / "train", "cells/images")
    Path("cells/all.json").write_text(json.dumps(given))
    config = load_config(prepare_own_data(Path("cells"), "random"))
    parts = [content(config["data"][name]["annotations"]) for name in ("train", "val")]
    areas = {item["id"]: item["area"] for part in parts for item in part["annotations"]}
    assert areas[given["annotations"][0]["id"]] is None
    for name in ("train", "val"):
        CocoDataset(config["data"][name]["images"], config["data"][name]["annotations"])


def test_what_is_not_clear_is_asked_for(shapes, photos):
    assert refusal("nowhere") == "--data nowhere: no such file or folder; correct the path"
    Path("empty").mkdir()
    assert "contains no annotations in a known format" in refusal("empty")
    (photos / "a.xml").write_text(VOC + "</object></annotation>")
    message = refusal(photos)
    assert "Pascal VOC XML (a.xml), YOLO text (" in message
    assert message.endswith("import one of them: ppdet-lite import-data --from voc|yolo photos --output DIR")
    shutil.copytree(shapes / "annotations", "files")
    Path("files/instances_val.json").rename("files/instances_more.json")
    assert "instances_more.json, instances_train.json" in refusal("files")
    assert "its images, such as 000001.jpg, are in none of" in refusal("files/instances_train.json")


def test_import_data_ends_with_the_next_commands(photos, monkeypatch, capsys):
    assert tool(monkeypatch, "import_data", "--from", "yolo", photos, "--output", "data", "--split", "0.8/0.2") == 0
    *_, train, evaluation, _ = capsys.readouterr().out.splitlines()
    assert train == "  ppdet-lite train -c data/detector.yml --eval"
    run = "output/data/detector"
    assert evaluation == f"  ppdet-lite eval -c data/detector.yml -o weights={run} --report {run}/report"
    assert load_config("data/detector.yml")["output"] == "output/data"
    assert tool(monkeypatch, "import_data", "--from", "yolo", photos, "--output", "whole") == 0
    assert "no detector.yml was written" in capsys.readouterr().out and not Path("whole/detector.yml").exists()


@pytest.mark.parametrize("images", [True, False])
def test_results_are_scored_without_a_config(place, monkeypatch, capsys, images):
    box = {"category_id": 5, "bbox": [1, 2, 30, 20]}
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (1, 2)],
        "annotations": [{"id": i, "image_id": i, "area": 600, "iscrowd": 0} | box for i in (1, 2)],
        "categories": [{"id": 5, "name": "cat"}],
    }
    Path("truth.json").write_text(json.dumps(truth))
    Path("bbox.json").write_text(json.dumps([{"image_id": i, "score": 0.9} | box for i in (1, 2)]))
    if images:
        Path("images").mkdir()
        for name in ("1.png", "2.png"):
            Image.new("RGB", (60, 40)).save(f"images/{name}")
    arguments = ["--results", "bbox.json", "--annotations", "truth.json", "--report", "report"]
    assert tool(monkeypatch, "eval", *arguments) == 0
    assert content("metrics.json")["AP"] == pytest.approx(1.0) and Path("report/report.html").is_file()
    assert ("until then a report shows no images" in capsys.readouterr().out) == (not images)
    assert tool(monkeypatch, "eval", "--compare", "bbox.json", "bbox.json", "--annotations", "truth.json") == 0
    if images:
        assert content("report/report.json")["run"]["image folder"] == "images"
        assert tool(monkeypatch, "eval", *arguments[:4], "--images", "none") == 2
        assert "image folder none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eval", ["--results", "bbox.json"]),
        ("eval", ["--annotations", "truth.json"]),
        ("eval", ["--annotations", "truth.json", "-c", "x.yml", "--results", "bbox.json"]),
        ("eval", ["-c", "x.yml", "--images", "images"]),
        ("train", ["--data", "photos", "-c", "x.yml"]),
        ("train", ["-c", "x.yml", "--start", "random"]),
        ("train", []),
    ],
)
def test_arguments_that_exclude_each_other(place, monkeypatch, capsys, name, arguments):
    assert tool(monkeypatch, name, *arguments) == 2
    assert "error: " in capsys.readouterr().err
