"""Two processes that train as one: their steps are those of one, and whatever ends one ends both well."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from ppdet_lite.assembly import ranks as product_ranks
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.loading.loader import Loader, TrainBatches
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.storage.checkpoint import latest_checkpoint, load_checkpoint
from ppdet_lite.training import loop
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.step import Step
from tests import ranks
from tests.tiny_run import QUICKSTART, WITHOUT_STAGE_5

TRAIN, EVAL = (str(ranks.ROOT / "tools" / name) for name in ("train.py", "eval.py"))
FAILING = str(ranks.ROOT / "tests/training/failing_rank.py")
TOTAL = 5
# All images have one size, and all anchors and proposals are taken, where elsewhere some are drawn: then means over
# ranks are means over images, and no small difference decides about a proposal. Mimicking does not begin.
ANCHORS = 3 * (16**2 + 8**2 + 4**2 + 2**2)
STEADY = [
    "data.preprocess={short_side: 64, long_side: 64, stride: 64}",
    "data.augment.short_sides=null",
    "data.loader.threads=1",
    *WITHOUT_STAGE_5,
    "model.backbone.norm=gn",
    "model.neck.out_channels=32",
    "model.roi_pool.output_size=3",
    "model.box_head.width=32",
    f"model.rpn={{sampler: {{count: {ANCHORS}, foreground_share: 1}}, nms_iou: 1.0, post_nms_train: {ANCHORS}}}",
    f"model.roi_sampler={{append_ground_truth: false, sampler: {{count: {ANCHORS}, foreground_share: 1}}}}",
    "model.postprocess.score_threshold=0.0",
    "model.mimic={type: RCNNTeacher, crop_size: 64, start_iteration: 100}",
    "optimizer={type: SGD, base_lr: 0.02, base_batch: 8, clip_norm: null, weight_decay: 1e-4}",
    "schedule.warmup_iterations=2",
    f"train.length={TOTAL} iterations",
    "train={checkpoint_every: 1 iterations, keep_last: 9, log_every: 1, evaluate_every: 5 iterations}",
    "train={accumulate: 2, ema: {decay: 0.9}, early_stop: 1, preview_images: 0}",
    'train.freeze=["backbone.stem.*"]',
]
ALONE = ["data.loader.batch_size=4", "train.checkpoint_every=null"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("squares")
    places = [f"data.{split}={{images: {folder}, annotations: {folder}/{split}.json}}" for split in ("train", "val")]
    for split, count in (("train", 16), ("val", 5)):
        write_squares(folder, split, count)
    return [*places, *STEADY]


def write_squares(folder: Path, split: str, count: int) -> None:
    """Images of noise, each with a bright square; every fifth has none."""
    rng = np.random.default_rng(count)
    images, annotations = [], []
    for number in range(1, count + 1):
        pixels, (x, y) = rng.integers(0, 128, (64, 64, 3), np.uint8), rng.integers(0, 32, 2).tolist()
        images.append({"id": number, "file_name": f"{split}{number}.png", "height": 64, "width": 64})
        if number % 5:
            pixels[y : y + 30, x : x + 30] += 120
            box = {"bbox": [x, y, 30, 30], "area": 900, "iscrowd": 0, "category_id": 1}
            annotations.append({"id": number, "image_id": number, **box})
        cv2.imwrite(str(folder / f"{split}{number}.png"), pixels)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / f"{split}.json").write_text(json.dumps(content))


def two_ranks(
    options: list[str], output: Path, *more: str, program: tuple[str, ...] = (TRAIN,)
) -> subprocess.Popen[str]:
    overrides = ["-o", *options, "data.loader.batch_size=2", f"output={output}"]
    return ranks.launch(output / "log", *program, "-c", str(QUICKSTART), *overrides, *more)


def weights_of(run: Path, iteration: int, group: str = "model") -> dict[str, np.ndarray]:
    return load_checkpoint(run / f"checkpoints/iter_{iteration:08d}").groups[group]


def log_of(run: Path) -> str:
    file = run / "train.log"
    return file.read_text() if file.exists() else ""


def measured(run: Path) -> list[dict[str, float]]:
    """Iteration, rate and losses of each step in metrics.jsonl."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "lr" in row]
    return [{name: row[name] for name in row if name in ("iteration", "lr") or "loss" in name} for row in rows]


def processes_of(output: Path) -> list[int]:
    """The numbers of the processes that have this output in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"output={output}".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of two ranks that nothing disturbed."""
    output = tmp_path_factory.mktemp("straight")
    process = two_ranks(options, output)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return output / "shapes_r18_fpn"


def test_two_take_the_steps_of_one_with_twice_the_batch(straight: Path, options: list[str], tmp_path: Path) -> None:
    train(load_config(QUICKSTART, [*options, *ALONE]), tmp_path / "one")
    for group in ("model", "ema"):
        two, one = (weights_of(run, TOTAL, group) for run in (straight, tmp_path / "one"))
        assert two.keys() == one.keys()
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert not np.array_equal(one["rpn.conv.weight"], weights_of(straight, 1)["rpn.conv.weight"])
    mine, theirs = (measured(run) for run in (straight, tmp_path / "one"))
    assert [row["iteration"] for row in mine] == [1, 2, 3, 4, 5] and mine[0]["loss_box"] > 0
    for row, expected in zip(mine, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert "(2 images x 2 devices x 2 batches) / base_batch 8" in log_of(straight)
    assert re.search(r"peak memory by rank: \d\.\d\d, \d\.\d\d GiB\n", log_of(straight))
    assert re.search(r"iter 5/5 .* \d\.\d\d\+\d\.\d\d GiB\n", log_of(straight))


def test_their_evaluation_is_that_of_one(straight: Path, options: list[str], tmp_path: Path) -> None:
    """Its last bits depend on the number of threads, which is one here as it is there."""
    weights = straight / f"checkpoints/iter_{TOTAL:08d}"
    overrides = [*options, "data.loader.batch_size=2", f"weights={weights}", f"output={tmp_path}"]
    subprocess.run(
        [sys.executable, EVAL, "-c", str(QUICKSTART), "-o", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    one, two = (folder / "bbox.json" for folder in (tmp_path / "shapes_r18_fpn", straight))
    assert one.read_bytes() == two.read_bytes() and len(json.loads(one.read_text())) > 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_one_dies_then_the_launcher_then_one_goes_on_alone(straight: Path, options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "shapes_r18_fpn"
    process = two_ranks([*options, "train.checkpoint_every=null"], tmp_path)
    wait_for(lambda: "iter 1/5" in log_of(run))
    _, victim = sorted(set(processes_of(tmp_path)) - {process.pid})
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0 and processes_of(tmp_path) == []
    print(f"all were gone {time.monotonic() - began:.1f} s after one was killed")
    log = log_of(run)
    assert "ERROR" in log and "has ended" in log and "workerlog.N" in log
    rescued = int(log.split("its finished iterations are saved as iter_")[1].splitlines()[0])

    process = two_ranks([*options, "train.checkpoint_every=null"], tmp_path, "--resume", "auto")
    wait_for(lambda: f"iter {rescued + 1}/5" in log_of(run))
    process.kill()
    process.communicate()
    wait_for(lambda: processes_of(tmp_path) == [])
    iteration = int(log_of(run).split("stopped by SIGTERM after iteration ")[1].split(";")[0])
    assert rescued < iteration
    for group in ("model", "optimizer", "ema"):
        again, undisturbed = (weights_of(folder, iteration, group) for folder in (run, straight))
        assert again.keys() == undisturbed.keys()
        for name, value in undisturbed.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)

    train(load_config(QUICKSTART, [*options, *ALONE]), run, resume="auto")
    told = "steps have 8 images (2 x 2 devices x 2 batches), those of this run 8 images (4 x 1 devices x 2 batches)"
    assert told in log_of(run)
    alone, both = (weights_of(folder, TOTAL) for folder in (run, straight))
    for name, value in both.items():
        np.testing.assert_allclose(alone[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("how", ["error", pytest.param("memory", marks=pytest.mark.slow), "image"])
def test_one_fails_where_the_other_does_not(options: list[str], tmp_path: Path, how: str) -> None:
    """In its model, for want of memory, or at an image of its own: both end, with its reason and what was done."""
    squares, run = tmp_path / "squares", tmp_path / "out/shapes_r18_fpn"
    shutil.copytree(re.search("images: ([^,]*)", options[0])[1], squares)
    options = [*options, *(f"data.{split}.images={squares}" for split in ("train", "val"))]
    steps, told, program = {
        "error": (2, "ERROR rank 1: ValueError: nobody thought of this", (FAILING, "error")),
        "memory": (2, "ERROR rank 1: out of memory in training: ", (FAILING, "memory")),
        "image": (1, "ERROR rank 1: image ", (TRAIN,)),
    }[how]
    if how == "image":
        data = build(load_config(QUICKSTART, options)["data"])
        batches = TrainBatches(data.train, data.preprocess, data.augment, Loader(batch_size=2), 0, rank=1, world=2)
        path = Path(data.train.info(batches.indices(2)[0]).path)  # a step takes two batches of it
        path.write_bytes(path.read_bytes()[:-2000])
    process = two_ranks(options, tmp_path / "out", program=program)
    process.communicate(timeout=120)
    assert process.returncode != 0 and processes_of(tmp_path / "out") == []
    assert told in log_of(run)
    assert latest_checkpoint(run / "checkpoints").name == f"iter_{steps:08d}"


def test_what_ranks_do_together() -> None:
    """See `ranks_worker`; the last of three leaves in the end, and the others say so."""
    processes = ranks.start(3, str(ranks.ROOT / "tests/training/ranks_worker.py"))
    (zero, one, two) = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert two[2] == 7, two[1]
    assert zero[2] == one[2] == 0, zero[1] + one[1]
    assert zero[0].splitlines()[-1].startswith("RunFailed rank 2 has ended without an error message")
    assert one[0].splitlines()[-1].startswith("RunFailed rank 0 has ended")


@pytest.mark.parametrize(
    ("hosts", "known", "given", "expected"),
    [
        (["127.0.0.1", "127.0.0.1"], False, None, "lo"),
        (["127.0.0.1", "127.0.0.1"], True, None, None),
        (["127.0.0.1", "127.0.0.1"], False, "eth1", "eth1"),
        (["10.0.0.1", "10.0.0.2"], False, None, None),
    ],
)
def test_gloo_uses_the_loopback_interface_if_the_machines_name_has_no_address(
    hosts: list[str], known: bool, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(name: str, port: None) -> list:
        if not known:
            raise product_ranks.socket.gaierror(-2, "Name or service not known")
        return []

    environment = {"PADDLE_TRAINER_ENDPOINTS": ",".join(f"{host}:6170" for host in hosts)}
    monkeypatch.setattr(os, "environ", environment | ({"GLOO_SOCKET_IFNAME": given} if given else {}))
    monkeypatch.setattr(product_ranks.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(sys, "platform", "linux")
    product_ranks._select_loopback_without_host_name()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_a_step_that_fails_elsewhere_leaves_what_was_done(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward of a step has changed running statistics when another rank is found to have ended."""
    seen: dict[int, np.ndarray] = {}

    def step(
        model: paddle.nn.Layer,
        optimizer: object,
        batches: object,
        clip: object,
        iteration: int,
        *_: object,
        **__: object,
    ) -> Step:
        mean = running_statistics(model)[0]
        seen[iteration] = mean.numpy()
        paddle.assign(mean + 1, mean)
        if iteration == 2:
            raise RunFailed("rank 1 has ended")
        return Step({"loss": 1.0}, {})

    monkeypatch.setattr("ppdet_lite.training.run.train_step", step)
    for name, stand_in in {"world": lambda: 2, "start": lambda: None, "on_all_ranks": lambda work: [work()]}.items():
        monkeypatch.setattr(loop.ranks, name, stand_in)
    more = ["model.backbone.norm=bn", "train.rehearse=false", "train.accumulate=1", "data.loader.batch_size=2"]
    with pytest.raises(RunFailed, match="rank 1 has ended"):
        loop.train(load_config(QUICKSTART, [*options, *more, "train.checkpoint_every=null"]), tmp_path)
    assert "WARNING the run fails; its finished iterations are saved as iter_00000002" in log_of(tmp_path)
    np.testing.assert_array_equal(weights_of(tmp_path, 2)["backbone.stem.norm._mean"], seen[2])
    assert seen[2].min() == 2.0


def test_batches_and_what_is_drawn_in_them_belong_to_no_rank(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks together look at the batches, and sample in them, as one process that accumulates two does."""
    seen: list[list] = []

    def step(
        model: paddle.nn.Layer, optimizer: object, batches: list, clip: object, done: int, seeds: list, **_: object
    ) -> Step:
        seen.append([(batch["image_ids"].tolist(), seed) for batch, seed in zip(batches, seeds, strict=True)])
        return Step({"loss": 1.0}, {})

    def steps(world: int, rank: int, accumulate: int) -> list[list]:
        seen.clear()
        for name, number in {"world": world, "rank": rank}.items():
            monkeypatch.setattr(loop.ranks, name, lambda number=number: number)
        more = [f"train.accumulate={accumulate}", "data.loader.batch_size=2", "train.evaluate_every=null"]
        more += ["train={length: 2 iterations, checkpoint_every: null, early_stop: null, rehearse: false, ema: null}"]
        config = load_config(QUICKSTART, [*options, *more])
        loop.train(config, tmp_path / f"{rank}-of-{world}")
        return list(seen)

    monkeypatch.setattr("ppdet_lite.training.run.train_step", step)
    for name, stand_in in {"start": lambda: None, "on_all_ranks": lambda work: [work()]}.items():
        monkeypatch.setattr(loop.ranks, name, stand_in)
    zero, one = steps(2, 0, 1), steps(2, 1, 1)
    alone = steps(1, 0, 2)
    assert [a + b for a, b in zip(zero, one, strict=True)] == alone
    assert len({seed for batches in alone for _, seed in batches}) == 4
