"""tools/convert_weights.py from the command line."""

import json
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from ppdet_lite.assembly.conversion import write_peer_weights
from ppdet_lite.assembly.setup import build_model, load_config, peer_config, state_shapes
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.names import PEERS
from ppdet_lite.storage.pdparams import read_pdparams, write_pdparams
from tests.tiny_run import tiny_config

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, data of two classes, and a file as PaddleDetection would write it for them."""
    folder = tmp_path_factory.mktemp("convert")
    model = build_model(peer_config(tiny_config(folder), "ppdet"), CLASSES, for_training=False)
    rng = np.random.default_rng(0)
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in state_shapes(model).items()}
    write_pdparams(folder / "theirs.pdparams", PEERS["ppdet"](state_shapes(model)).to_theirs(ours))
    save_file(ours, folder / "ours.safetensors")
    return folder


@pytest.fixture
def run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a tool in the folder, in this process."""

    def call(*arguments: object, tool: str = "convert_weights") -> subprocess.CompletedProcess[str]:
        path, code = str(ROOT / f"tools/{tool}.py"), 0
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [path, "-c", "tiny.yml", *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(path, code, *capsys.readouterr())

    return call


Tool = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_there_and_back(place: Path, run: Tool) -> None:
    theirs = read_pdparams(place / "theirs.pdparams")
    done = run("--from", "ppdet", "--classes", "train.json", "theirs.pdparams", "run")
    assert done.returncode == 0, done.stderr
    assert f"{len(theirs)} arrays of theirs.pdparams converted into run" in done.stdout
    assert json.loads((place / "run/classes.json").read_text()) == [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert "interpolation: cubic" in (place / "run/config.yml").read_text()
    detector = load_trained(peer_config(place / "run/config.yml", "ppdet", [f"weights={place}/run"]))
    assert (detector.class_names, detector.preprocess.interpolation) == (CLASSES, "cubic")
    assert refused(run("--from", "ppdet", "theirs.pdparams", "run")) == (
        "error: run already contains a run; choose another folder\n"
    )
    done = run("--to", "ppdet", "run", "back.pdparams")
    assert done.returncode == 0, done.stderr
    back = read_pdparams(place / "back.pdparams")
    assert back.keys() == theirs.keys() and all(np.array_equal(back[name], theirs[name]) for name in back)


def test_overrides_may_stand_before_the_paths(place: Path, run: Tool) -> None:
    before = ["-o", "model.rpn.nms_iou=0.6", "runtime.seed=3"]
    done = run("--from", "ppdet", "--classes", "train.json", *before, "theirs.pdparams", "behind")
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in (place / "behind/config.yml").read_text()
    done = run(*before[:2], "--to", "ppdet", "-o", "runtime.seed=1", "behind", "again.pdparams")
    assert done.returncode == 0, done.stderr
    assert "the following arguments are required: DST" in refused(run("--to", "ppdet", *before, "behind"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("prefix", ["", "module.", "_layers.module."])
def test_precision_and_prefix_of_a_detector(place: Path, run: Tool, dtype: type, prefix: str) -> None:
    theirs, name = read_pdparams(place / "theirs.pdparams"), f"{np.dtype(dtype).name}{prefix or '.'}"
    write_pdparams(place / f"{name}pdparams", {f"{prefix}{key}": a.astype(dtype) for key, a in theirs.items()})
    done = run("--from", "ppdet", "--classes", "train.json", f"{name}pdparams", name)
    assert done.returncode == 0, done.stderr
    assert (f"the prefix '{prefix}' is removed from all names" in done.stdout) == bool(prefix)
    converted = load_file(place / name / "checkpoints/best/model.safetensors")
    ours = load_file(place / "ours.safetensors")
    assert converted.keys() == ours.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(converted[key], array.astype(dtype).astype(np.float32), key, strict=True)
    trained = load_trained(load_config(place / name / "config.yml", [f"weights={place / name}"]))
    assert trained.model.predictor.classify.bias.dtype == paddle.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_evaluation_reads_every_precision_and_prefix(place: Path, dtype: type) -> None:
    ours = load_file(place / "ours.safetensors")
    save_file({f"module.{key}": array.astype(dtype) for key, array in ours.items()}, place / "wrapped.safetensors")
    config = peer_config(place / "tiny.yml", "ppdet", [f"weights={place}/wrapped.safetensors"])
    state = load_trained(config).model.state_dict()
    assert all(np.array_equal(state[key].numpy(), a.astype(dtype).astype(np.float32)) for key, a in ours.items())


def test_numbers_that_are_not_finite_are_refused(place: Path, run: Tool) -> None:
    arrays = read_pdparams(place / "theirs.pdparams")
    arrays["rpn_head.rpn_feat.rpn_conv.bias"][1] = np.nan
    write_pdparams(place / "nan.pdparams", arrays)
    message = refused(run("--from", "ppdet", "--classes", "train.json", "nan.pdparams", "none"))
    assert "nan.pdparams: rpn_head.rpn_feat.rpn_conv.bias has 1 values that are not finite" in message
    assert not (place / "none").exists()


def test_what_does_not_fit_is_listed_and_nothing_is_written(place: Path, run: Tool) -> None:
    arrays = read_pdparams(place / "theirs.pdparams")
    arrays["neck.extra"] = arrays.pop("rpn_head.rpn_feat.rpn_conv.bias")
    write_pdparams(place / "odd.pdparams", arrays)
    message = refused(run("--from", "ppdet", "--classes", "train.json", "odd.pdparams", "none"))
    assert "1 missing, 1 unexpected" in message and "  neck.extra\n" in message
    assert "  rpn.conv.bias (rpn_head.rpn_feat.rpn_conv.bias)\n" in message
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--from", "ppdett", "theirs.pdparams", "x"],
            "--from ppdett: unknown project; choose ppdet, torchvision, mmdet",
        ),
        (["--from", "ppdet", "theirs.pdparams", "x"], "has 2 classes without names; give --classes annotations.json"),
        (["--from", "ppdet", "--classes", "three.json", "theirs.pdparams", "x"], "has 2 classes, but names for 3: cat"),
        (["--from", "mmdet", "theirs.pdparams", "x"], "use --from ppdet, it is from PaddleDetection"),
        (["--from", "ppdet", "ours.safetensors", "x"], "not a detector from PaddleDetection"),
        (["--from", "ppdet", "nowhere.pdparams", "x"], "nowhere.pdparams: no such weights"),
        (["--from", "detectron2", "list.pkl", "x"], "list.pkl: damaged, or not a weights file"),
        (["--to", "ppdet", "nowhere", "x.pdparams"], "nowhere: no such weights"),
        (["--to", "ppdet", "theirs.pdparams", "x.pdparams"], "theirs.pdparams: not a detector of this project"),
    ],
)
def test_mistakes_are_reported_in_one_line(place: Path, run: Tool, arguments: list[str], message: str) -> None:
    names = [{"id": i, "name": name} for i, name in enumerate(["cat", "dog", "cow"])]
    content = {"images": [{"id": 1}], "annotations": [], "categories": names}
    (place / "three.json").write_text(json.dumps(content))
    (place / "list.pkl").write_bytes(pickle.dumps([1]))
    error = refused(run(*arguments))
    assert message in error and error.count("\n") == 1
    assert not (place / "x").exists() and not (place / "x.pdparams").exists()


def test_options_that_do_not_apply_are_refused(place: Path, run: Tool) -> None:
    both = refused(run("--to", "ppdet", "--bn-epsilon", "0", "theirs.pdparams", "x"))
    assert "--classes and --bn-epsilon require --from" in both
    for epsilon in ("nan", "-1", "inf"):
        error = refused(run("--from", "torchvision", f"--bn-epsilon={epsilon}", "theirs.pdparams", "x"))
        assert "--bn-epsilon is a number of at least 0" in error
    unused = refused(run("--from", "ppdet", "--classes", "train.json", "--bn-epsilon", "0", "theirs.pdparams", "x"))
    assert (
        "has no batch norms with torch's names, to which --bn-epsilon applies" in unused and not (place / "x").exists()
    )


def test_the_message_for_a_foreign_file_has_the_command(run: Tool) -> None:
    message = refused(run("-o", "weights=theirs.pdparams", tool="eval"))
    assert "ppdet-lite convert-weights --from ppdet -c CONFIG theirs.pdparams FOLDER" in message


def test_a_model_without_names_there_is_reported(place: Path) -> None:
    config = peer_config(place / "tiny.yml", "ppdet", ["model.rpn.convs=2"])
    with pytest.raises(UserError, match=r"2 missing.*rpn\.more_convs"):
        write_peer_weights("ppdet", config, place / "ours.safetensors", place / "y.pdparams")
    model = build_model(config, CLASSES, for_training=False)
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, place / "two.safetensors")
    with pytest.raises(UserError, match="PaddleDetection has no name for"):
        write_peer_weights("ppdet", config, place / "two.safetensors", place / "y.pdparams")
    assert not (place / "y.pdparams").exists()


def test_what_only_training_needs_is_not_written(place: Path) -> None:
    with_teacher = {**load_file(place / "ours.safetensors"), "mimic.classify.bias": np.zeros(3, np.float32)}
    save_file(with_teacher, place / "teacher.safetensors")
    config = peer_config(place / "tiny.yml", "ppdet")
    write_peer_weights("ppdet", config, place / "teacher.safetensors", place / "z.pdparams")
    written, theirs = (read_pdparams(place / name) for name in ("z.pdparams", "theirs.pdparams"))
    assert written.keys() == theirs.keys() and all((written[name] == theirs[name]).all() for name in theirs)
