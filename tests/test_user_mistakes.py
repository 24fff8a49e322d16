"""What a user can get wrong: each is one line saying what and how to mend it, exit code 2, nothing half-written."""

import json
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.data.synthetic.shapes import generate
from tests.tiny_run import WITHOUT_STAGE_5

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn.yml"
SMALL = [
    *WITHOUT_STAGE_5,
    "data.preprocess={short_side: 64, long_side: 96, stride: 32}",
    "data.loader={batch_size: 1, threads: 2}",
    "model.neck.out_channels=32",
    "model.box_head.width=32",
    "train.length=2 iterations",
]
TRAINING = ["config.yml", "classes.json", "metrics.jsonl", "train.log", "vdl"]  # what a run writes before it trains


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    generate(folder, train=4, val=2, seed=3)
    return folder


@pytest.fixture
def shapes(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.fixture
def options(shapes, tmp_path):
    return [
        *SMALL,
        *(f"data.{s}.images={shapes}/{s}" for s in ("train", "val")),
        *(f"data.{s}.annotations={shapes}/annotations/instances_{s}.json" for s in ("train", "val")),
        f"output={tmp_path}/output",
    ]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run a tool, expect exit code 2, and return its one line; `left` names the files that may be there afterwards.

    A config of None leaves out its options too.
    """

    def run(tool, config, options, *arguments, left=()):
        command = [tool, *([] if config is None else ["-c", str(config), "-o", *options]), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        message = capsys.readouterr().err
        assert ended.value.code == 2, message
        assert message.startswith("error: ") and message.count("\n") == 1, message
        found = {path.name for path in (tmp_path / "output").glob("*/*")}
        assert found <= set(left), f"left behind: {found}"
        return message

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model: {neck: {out_chanels: 32}}", "bad.yml:2: model.neck.out_chanels: unknown key of FPN; did you mean"),
        (
            "model: {neck: {out_channels: many}}",
            "bad.yml:2: model.neck.out_channels: expected a whole number, got 'many'",
        ),
        ("model: {backbone: {type: ResNt}}", "bad.yml:2: model.backbone.type: expected ResNet, got 'ResNt'"),
        ("train: {length: 12}", "bad.yml:2: train.length: expected"),
    ],
    ids=["typo", "wrong type", "unknown component", "length without unit"],
)
def test_config(tmp_path, options, refused, line, message):
    config = tmp_path / "bad.yml"
    config.write_text(f"_base_: {CONFIG}\n{line}\n")
    without = [option for option in options if not option.startswith(("model", "train."))]
    assert message in refused("train.py", config, without)


def test_missing_annotations(options, refused, shapes):
    (shapes / "annotations/instances_train.json").unlink()
    assert "cannot read annotations" in (line := refused("train.py", CONFIG, options)) and "instances_train" in line


def test_other_classes_in_validation(options, refused, shapes):
    path = shapes / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "blob"
    path.write_text(json.dumps(content))
    line = refused("train.py", CONFIG, options, "--eval")
    assert "only in the file: blob" in line and "missing in the file: " in line


def test_missing_image(options, refused, shapes):
    for path in (shapes / "train").iterdir():
        path.unlink()
    line = refused("train.py", CONFIG, options)
    assert line.startswith(
        f"error: command line: data.train.images: {shapes}/annotations/instances_train.json: 4 of 4 "
    )
    assert "image 1 (000001.jpg)" in line and f'"tried": "{shapes}/train/000001.jpg"' in line


def test_a_missing_image_of_an_evaluation_that_is_far_away(options, refused, shapes):
    (shapes / "val/000002.jpg").unlink(missing_ok=True)
    next((shapes / "val").iterdir()).unlink(missing_ok=True)
    line = refused("train.py", CONFIG, [*options, "train.evaluate_every=null"])
    assert line.startswith("error: command line: data.val.images: ") and " of 2 images have no file" in line


def test_an_error_in_data_has_the_place_that_was_set_last(tmp_path, options, refused, shapes):
    """The user's file sets images, the base the rest; the command line annotations."""
    config = tmp_path / "mine.yml"
    config.write_text(f"_base_: {CONFIG}\ndata:\n  train:\n    images: {tmp_path}/nowhere\n")
    mine = [option for option in options if not option.startswith("data.train.images")]
    line = refused("train.py", config, mine)
    assert line.startswith(f"error: {config}:4: data.train.images: image folder {tmp_path}/nowhere ")
    line = refused("train.py", config, [*mine, "data.train.annotations=none.json"])
    assert line.startswith("error: command line: data.train.annotations: cannot read annotations none.json")


def test_nothing_to_learn(options, refused, shapes):
    path = shapes / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": []}))
    line = refused("train.py", CONFIG, options)
    assert f"data.train.annotations: {path}: 4 of 4 images have no boxes other than crowd regions: annotate" in line


def test_the_number_of_classes(options, refused):
    line = refused("train.py", CONFIG, [*options, "model.num_classes=3"])
    assert (
        line == "error: command line: model.num_classes: is derived from the categories in the annotations, remove it\n"
    )


def test_corrupt_image(options, refused, shapes):
    for path in (shapes / "train").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    line = refused("train.py", CONFIG, options, left=TRAINING)
    assert "cannot be decoded (200 bytes): " in line and "image id" in line


@pytest.mark.parametrize("tool", ["eval.py", "infer.py", "export_model.py"])
def test_weights_of_another_model(options, refused, tmp_path, shapes, tool):
    config = load_config(CONFIG, [*options, "model.box_head.width=48"])
    model = build_model(config)
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, tmp_path / "other.safetensors")
    arguments = {
        "eval.py": (),
        "infer.py": ("--input", shapes / "val", "--output", tmp_path / "pictures"),
        "export_model.py": ("--output", tmp_path / "exported"),
    }[tool]
    line = refused(tool, CONFIG, [*options, f"weights={tmp_path}/other.safetensors"], *arguments)
    assert "weights are of another model" in line and "6 mismatched" in line
    assert not (tmp_path / "pictures").exists() and not (tmp_path / "exported").exists()


class Malice:
    def __reduce__(self):
        return Path.touch, (Path("was-executed"),)


@pytest.mark.parametrize("key", ["weights", "pretrain_weights"])
def test_malicious_pickle(options, refused, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pdparams").write_bytes(pickle.dumps({"conv1.weight": Malice()}, protocol=2))
    tool = "eval.py" if key == "weights" else "train.py"
    line = refused(tool, CONFIG, [*options, f"{key}={tmp_path}/evil.pdparams"], left=["train.log"])
    assert "evil.pdparams" in line and "refused" in line
    assert not (tmp_path / "was-executed").exists()


def test_weights_that_are_not_there(options, refused):
    assert "no weights given" in refused("eval.py", CONFIG, options)
    assert "nowhere: no such weights" in refused("eval.py", CONFIG, [*options, "weights=nowhere"])


def test_damaged_weights(options, refused, tmp_path):
    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "torn.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "torn.safetensors").read_bytes()[:150])
    assert "damaged" in refused("eval.py", CONFIG, [*options, f"weights={tmp_path}/torn.safetensors"])


@pytest.mark.parametrize("tool", ["eval.py", "infer.py"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such file or folder; give a run folder, an exported folder or an .onnx file"),
        (
            "shapes",
            "shapes: not a run folder (config.yml), an exported folder (model.json, infer_cfg.yml) or an .onnx",
        ),
        ("a.txt", "a.txt: not a run folder"),
        ("a.onnx", "a.onnx: not an ONNX file, or damaged"),
        ("theirs", "theirs/infer_cfg.yml: has no section ppdet_lite, another program wrote it"),
        ("run", "run: contains no intact checkpoint"),
    ],
)
def test_what_is_no_model(options, refused, shapes, tmp_path, tool, name, message):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    for path in ("a.txt", "a.onnx"):
        (tmp_path / path).write_text("some text")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/model.json").write_text("{}")
    (tmp_path / "theirs/model.pdiparams").touch()
    (tmp_path / "theirs/infer_cfg.yml").write_text("mode: paddle\narch: RCNN\nlabel_list: [cat]\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yml").write_text(load_config(CONFIG, options).dump())
    arguments = ("--input", shapes / "val", "--output", tmp_path / "pictures") if tool == "infer.py" else ()
    config, data = CONFIG if tool == "eval.py" else None, [text for text in options if text.startswith("data.val")]
    assert message in refused(tool, config, data, "--model", tmp_path / name, *arguments)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("content", [b"", b"some text\n" * 50], ids=["empty", "text"])
def test_what_is_no_video(options, refused, tmp_path, content):
    model = build_model(load_config(CONFIG, options))
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "a.mp4").write_bytes(content)
    arguments = ("--input", tmp_path / "a.mp4", "--output", tmp_path / "pictures")
    line = refused("infer.py", CONFIG, [*options, f"weights={tmp_path}/w.safetensors"], *arguments)
    assert "a.mp4: not a video that OpenCV can read: it is empty, damaged or of an unsupported format; the" in line
    assert not (tmp_path / "pictures").exists()


def test_output_that_cannot_be_written(options, refused, tmp_path):
    (tmp_path / "output").write_text("a file where a folder should be")  # root may write into any read-only folder
    assert "cannot be written" in refused("train.py", CONFIG, options)


def test_device_that_is_not_there(options, refused):
    line = refused("train.py", CONFIG, [*options, "runtime.device=gpu"])
    assert "runtime.device: gpu" in line and "command line" in line
