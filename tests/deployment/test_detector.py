"""`Detector`: loading, inputs, and equal detections of all kinds of models."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import PIL.Image
import pytest

import ppdet_lite
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.deployment.description import DESCRIPTION
from ppdet_lite.deployment.detector import Detections, Detector, select_detector
from ppdet_lite.deployment.export import export
from tests.onnx_packages import MISSING, needs_onnx_export, require_onnx_export
from tests.tiny_run import SIZES, describe_tiny_run, tiny_checkpoint

CAFFE = (
    "data.preprocess={short_side: 64, long_side: 128, channels: bgr, pixel_range: 255, mean: [103, 116, 123], "
    "std: [57, 58, 59]}"
)


ONNX = "exported/model.onnx"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that takes BGR and only detects its class 1, "cat"; its export; images."""
    folder = tmp_path_factory.mktemp("place")
    run = describe_tiny_run(tiny_checkpoint(folder, ["dog", "cat"], [9, 5], favorite=1), [CAFFE])
    trained = load_trained(load_config(run / "config.yml", [f"weights={run}"]))
    export(trained, folder / "exported", sorted((folder / "images").iterdir()), "paddle" if MISSING else "both")
    return folder


@pytest.fixture(scope="module", params=["run", "run/checkpoints/best", "exported", ONNX])
def detector(place: Path, request: pytest.FixtureRequest) -> Detector:
    if request.param == ONNX:
        require_onnx_export()
    return ppdet_lite.Detector.load(str(place / request.param))


def assert_same(found: Detections, expected: Detections, gap: float = 0.0) -> None:
    assert len(found.boxes) == len(expected.boxes) and found.names == expected.names
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=gap, rtol=0)


def test_three_lines(detector: Detector, place: Path) -> None:
    found = detector(place / "images" / "7.png")
    count = len(found.boxes)
    assert count > 0 and found.names == ["cat"] * count and found.classes.tolist() == [1] * count
    assert found.boxes.shape == (count, 4) and found.scores.shape == (count,)
    assert [part.dtype for part in found[:3]] == [np.float32, np.float32, np.int64]
    height, width = SIZES[7]
    assert (found.boxes >= 0).all() and (found.boxes <= [width, height] * 2).all() and found.boxes.max() > height
    assert (np.diff(found.scores) <= 0).all()
    assert detector.class_names == ["dog", "cat"] and detector.category_ids == [9, 5]


def test_an_array_is_rgb(detector: Detector, place: Path) -> None:
    path = place / "images" / "7.png"
    found = detector(str(path))
    assert_same(detector(load_image(str(path))), found)
    assert_same(detector(cv2.imread(str(path))[..., ::-1]), found)
    other = detector(cv2.imread(str(path)))
    assert len(other.boxes) != len(found.boxes) or np.abs(other.scores - found.scores).max() > 0


def test_a_pillow_image_is_detected_like_its_file(detector: Detector, place: Path, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    path = place / "images" / "7.png"
    original = Image.open(path)
    Image.open(path).save(tmp_path / "turned.png", exif=exif)
    original.convert("RGBA").save(tmp_path / "alpha.png")
    original.convert("P").save(tmp_path / "palette.png")
    original.convert("L").save(tmp_path / "gray.png")
    paths = [path, *sorted(tmp_path.iterdir())]
    expected = [detector(path) for path in paths]
    for found, other in zip([detector(Image.open(path)) for path in paths], expected, strict=True):
        assert_same(found, other)
    for found, other in zip(detector([Image.open(path) for path in paths], batch_size=2), expected, strict=True):
        assert_same(found, other, 1e-3)
    width, height = original.size
    turned = detector(Image.open(tmp_path / "turned.png")).boxes
    assert len(turned) and turned[:, 2].max() <= height and turned[:, 3].max() > height < width


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_list_gives_a_list_in_its_order(detector: Detector, place: Path, batch_size: int) -> None:
    paths = sorted((place / "images").iterdir())
    images = [*paths, load_image(str(paths[0])), *paths]
    found = detector(images, batch_size=batch_size)
    assert isinstance(found, list) and len(found) == 7
    for image, part in zip(images, found, strict=True):
        assert_same(part, detector(image), 1e-3)
    assert detector([]) == [] and len(detector(images[:1])) == 1


def test_all_kinds_of_models_have_the_same_detections(detector: Detector, place: Path) -> None:
    trained = Detector.load(place / "run")
    if "exported" in detector.source:
        assert detector.preprocess == trained.preprocess.with_rgb_input() != trained.preprocess
    assert detector.postprocess == trained.postprocess
    for path in sorted((place / "images").glob("*.png")):
        assert_same(detector(path), trained(path), 1e-3)


def test_above_drops_low_scores() -> None:
    found = Detections(
        np.arange(12, dtype=np.float32).reshape(3, 4), np.float32([0.9, 0.5, 0.1]), np.arange(3), [*"abc"]
    )
    good = found.above(0.5)
    assert good.names == ["a", "b"] and good.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert good.scores.tolist() == pytest.approx([0.9, 0.5]) and good.classes.tolist() == [0, 1]
    assert found.above(1.0).boxes.shape == (0, 4) and found.above(1.0).names == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("no.png", r"cannot read image .*no\.png: No such file"),
        ("bad.jpg", r"bad\.jpg cannot be decoded"),
        (".", "is a folder; give a list of its images"),
        (np.zeros((8, 8), np.uint8), r"image 0 is uint8 \[8, 8\]; give a path, an RGB array uint8 \[H, W, 3\] or a P"),
        (np.zeros((8, 8, 4), np.uint8), r"image 0 is uint8 \[8, 8, 4\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"image 0 is uint8 \[2, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.float32), r"image 0 is float32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"image 0 is uint8 \[0, 8, 3\]"),
        (np.array(["a.jpg"]), r"image 0 is <U5 \[1\]; give a path"),
        ([np.zeros((8, 8, 3), np.uint8), 7], "image 1 is of type int; give a path, an RGB array"),
        ([["a.jpg"]], "image 0 is of type list; give a path"),
        (None, "image 0 is of type NoneType; give a path"),
        (7, "image 0 is of type int; give a path"),
        (b"a.jpg", "image 0 is of type bytes; give a path"),
        ({"a.jpg": 1}, "image 0 is of type dict; give a path"),
        ({"a.jpg", "b.jpg"}, "image 0 is of type set; give a path"),
        (paddle.zeros([3, 8, 8]), "image 0 is of type Tensor; give a path"),
        (paddle.zeros([]), "image 0 is of type Tensor; give a path"),
        (PIL.Image.new("F", (8, 8)), "image 0 cannot be converted: its pixels are float32"),
        (PIL.Image.new("RGB", (0, 8)), r"image 0 is uint8 \[8, 0, 3\]"),
    ],
)
def test_invalid_images_are_refused(detector: Detector, place: Path, image: object, message: str) -> None:
    (place / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=message):
        detector(place / image if isinstance(image, str) else image)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing: no such file or folder; give a run folder, an exported folder or an .onnx file"),
        ("images", "images: not a run folder"),
        ("val.json", r"val\.json: not a run folder .* for a bare weights file, give its config"),
        ("half", r"half: not an exported model: model\.pdiparams is missing; use ppdet-lite export-model"),
        ("torn", r"torn: damaged or not written by this program; export it again \(.*Cannot read tensor"),
        ("other", r"other/infer_cfg\.yml: has no section ppdet_lite, another program wrote it"),
    ],
)
def test_what_is_no_model(place: Path, name: str, message: str) -> None:
    for folder, missing in (("half", "model.pdiparams"), ("other", ""), ("torn", "")):
        (place / folder).mkdir(exist_ok=True)
        for path in (place / "exported").iterdir():
            if path.name != missing:
                (place / folder / path.name).write_bytes(path.read_bytes())
    (place / "torn" / "model.pdiparams").write_bytes((place / "exported" / "model.pdiparams").read_bytes()[:5000])
    (place / "other" / DESCRIPTION).write_text("mode: paddle\nlabel_list: [dog, cat]\n")
    with pytest.raises(UserError, match=message):
        Detector.load(place / name)


@needs_onnx_export
def test_other_onnx_files_are_refused(place: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    tensor = (
        helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
    )
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", tensor[:1], tensor[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(place / "theirs.onnx"))
    (place / "text.onnx").write_text("some text\n")
    (place / "torn.onnx").write_bytes((place / ONNX).read_bytes()[:5000])
    (place / "empty.onnx").touch()
    for name, message in (
        ("theirs", r"theirs\.onnx: an ONNX file of another program"),
        ("text", r"text\.onnx: not an ONNX file, or damaged"),
        ("torn", r"torn\.onnx: not an ONNX file, or damaged"),
        ("empty", r"empty\.onnx: (not an|an) ONNX file"),
    ):
        with pytest.raises(UserError, match=message) as told:
            Detector.load(place / f"{name}.onnx")
        assert "\n" not in str(told.value)


def test_the_device(place: Path) -> None:
    with pytest.raises(UserError, match="exported models run on the CPU"):
        Detector.load(place / "exported", device="gpu")


def test_a_tool_uses_weights_or_model(place: Path) -> None:
    config = load_config(place / "tiny.yml", [f"weights={place}/run"])
    assert select_detector(config, None).source == str(place / "run/checkpoints/best")
    assert select_detector(None, place / "exported").source == str(place / "exported")
    with pytest.raises(UserError, match=r"command line: both weights and --model .*exported are given; remove one"):
        select_detector(config, place / "exported")


@pytest.mark.parametrize("name", ["a: #b=c", "run\U0001f600", "猫 é", 'a"b\\c'])
def test_a_path_of_any_letters(place: Path, tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    odd.symlink_to(place / "run")
    assert Detector.load(odd).class_names == ["dog", "cat"]


def test_the_example_in_the_readme(place: Path) -> None:
    """In a separate process that imports ppdet_lite first; nothing else is printed."""
    code = (
        "from ppdet_lite import Detector\n"
        f"found = Detector.load({str(place / 'run')!r})({str(place / 'images/7.png')!r})\n"
        "print(found.names[0], len(found.boxes) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "cat True\n", "")
