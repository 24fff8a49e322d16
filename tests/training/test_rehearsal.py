"""The rehearsal: how large a batch it takes, that it leaves no trace, and what is said when memory does not suffice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.crops import RandomCrop, ScaleJitter
from ppdet_lite.data.loading.largest_batch import largest_batch
from ppdet_lite.data.loading.loader import Loader, TrainBatches
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.optimization.optimizer import SGD, AdamW
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.training.loop import train
from ppdet_lite.training.memory import memory_errors_reported
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.rehearsal import rehearse
from tests import tiny
from tests.tiny_run import QUICKSTART, small_shapes, tiny_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *small_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2),
        "train={length: 3 iterations, checkpoint_every: null, log_every: 1}",
        "data.loader={batch_size: 2, threads: 0}",
        "train.rehearse=true",
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_no_batch_of_training_is_larger(tmp_path: Path, batch_size: int) -> None:
    """Three images of 64x96, 96x64 and 128x100; every batch of many epochs beside the one that is rehearsed."""
    dataset = tiny_dataset(tmp_path)
    preprocess, augment = Preprocess(short_side=40, long_side=100), Augment(short_sides=[48, 64, 80], sampling="range")
    found = largest_batch(dataset, preprocess, augment, batch_size, keep_original=True)
    batches = TrainBatches(dataset, preprocess, augment, Loader(batch_size, threads=0), seed=0, keep_original=True)
    stream = batches.iterate()
    sizes = [next(stream)["images"].shape[2:] for _ in range(150)]
    size = found["images"].shape[2:]
    if batch_size == 1:
        assert np.prod(size) == np.prod(sizes, axis=1).max() and size in sizes
    else:
        assert size == tuple(np.max(sizes, axis=0))
    assert found["images"].shape[:2] == (batch_size, 3)
    assert [len(target["boxes"]) for target in found["targets"]] == [2] * batch_size
    assert len(found["original_images"]) == len(found["flipped"]) == batch_size


def test_the_short_side_is_that_of_training(tmp_path: Path) -> None:
    """Of evaluation where training has none of its own; by hand: 128x100 at 200 is 256x200, and 96x64 is 300x200."""
    dataset = tiny_dataset(tmp_path)
    batch = largest_batch(dataset, Preprocess(short_side=200, long_side=1000, stride=1), Augment(), 2)
    assert batch["images"].shape == (2, 3, 300, 300)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_crops_can_be_longer_than_any_image(tmp_path: Path, batch_size: int) -> None:
    """No image is twice as wide as high, but windows are: 40x80 and 80x40; the long side ends at 80."""
    dataset, crop = tiny_dataset(tmp_path), Augment(crop=RandomCrop(probability=1.0, sides=(0.3, 1.0)))
    preprocess = Preprocess(short_side=40, long_side=100, stride=8)
    size = largest_batch(dataset, preprocess, crop, batch_size)["images"].shape[2:]
    assert size == ((80, 80) if batch_size == 2 else (40, 80))
    stream = TrainBatches(dataset, preprocess, crop, Loader(batch_size, threads=0), seed=0).iterate()
    sizes = [next(stream)["images"].shape[2:] for _ in range(100)]
    assert np.max(sizes) == 80 and np.prod(sizes, axis=1).max() <= np.prod(size)


def test_large_scale_jitter_has_one_size(tmp_path: Path) -> None:
    augment = Augment(scale_jitter=ScaleJitter(size=(70, 90)))
    batch = largest_batch(tiny_dataset(tmp_path), Preprocess(stride=32), augment, 2)
    assert batch["images"].shape == (2, 3, 96, 96) and batch["image_sizes"].tolist() == [[70, 90]] * 2


def state_of(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("settings", [SGD(), AdamW()])
def test_nothing_is_changed(settings: Any) -> None:
    model = tiny.detector(norm="bn", mimic={"rois": "both", "crop_size": 32})
    optimizer = settings.build(model)
    paddle.seed(7)
    expected = paddle.rand([3]).tolist()
    before = state_of(model)
    paddle.seed(7)
    rehearse(model, optimizer, tiny.batch(), gradient_copies=1)
    assert paddle.rand([3]).tolist() == expected
    for name, value in state_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert all(parameter.grad is None for parameter in model.parameters()) and not optimizer.state_dict()


def test_a_run_is_bit_for_bit_the_same_without_it(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("with", "without"):
        rehearses = str(name == "with").lower()
        train(load_config(QUICKSTART, [*options, "train.accumulate=2", f"train.rehearse={rehearses}"]), tmp_path / name)
        assert ("rehearsed a step of 2 images" in capsys.readouterr().out) == (name == "with")
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints/iter_00000003").groups for name in ("with", "without")
    )
    for group in ("model", "optimizer"):
        assert first[group].keys() == second[group].keys()
        assert all(np.array_equal(value, second[group][name]) for name, value in first[group].items())


def test_what_a_step_holds_is_in_the_log(options: list[str], tmp_path: Path) -> None:
    train(load_config(QUICKSTART, [*options, "train.length=1 iterations"]), tmp_path)
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert row["memory_mb"] > 100 and f"  {row['memory_mb'] / 1024:.2f} GiB" in (tmp_path / "train.log").read_text()


LIMITED = """
import resource, sys
from pathlib import Path
import ppdet_lite, paddle
from ppdet_lite.core import cli
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.training.loop import train

config = load_config(sys.argv[1], sys.argv[3:])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (600 << 20),) * 2)
cli.run(lambda: train(config, Path(sys.argv[2])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited and measured as on Linux")
def test_too_little_memory_ends_the_run_in_one_line(options: list[str], tmp_path: Path) -> None:
    large = ["data.preprocess={short_side: 1600, long_side: 2400, stride: 32}", "data.augment.short_sides=null"]
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(QUICKSTART), str(tmp_path / "run"), *options, *large]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "OMP_NUM_THREADS" not in line and "WISELY" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: out of memory in the rehearsal of a step of 2 images of ")
    assert "lower data.loader.batch_size (train.accumulate makes up for it)" in lines[0]
    assert "iter" not in done.stdout.split("iterations per epoch")[1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("ResourceExhaustedError:\n\nOut of memory on GPU 0. Cannot allocate 2GB"),
        RuntimeError("(External) CUDNN_STATUS_ALLOC_FAILED. Cannot allocate 2GB"),
        SystemError("paddle::memory::allocation::BadAlloc: Cannot allocate 2GB"),
        RuntimeError("a.png: error: (-4:Insufficient memory) Cannot allocate 2GB in function 'OutOfMemoryError'"),
    ],
)
def test_memory_that_runs_out_is_told(error: Exception) -> None:
    words = r"^out of memory in training: (an allocation failed|.*Cannot allocate 2GB).*batch_size"
    with pytest.raises(RunFailed, match=words), memory_errors_reported("training"):
        raise error
    with pytest.raises(RuntimeError, match="another"), memory_errors_reported("training"):
        raise RuntimeError("another")
