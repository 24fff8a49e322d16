"""Batches: independent of the number of threads, complete, and with errors passed on."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.loader import EvalBatches, Loader, TrainBatches
from ppdet_lite.data.loading.transforms import Preprocess, View

SIZES = [(16, 24), (24, 16), (16, 20), (28, 16), (18, 24), (16, 16), (24, 18)]  # 3 of 7 are portraits
PREPROCESS = Preprocess(short_side=16, long_side=40, stride=8)


@pytest.fixture
def files(coco_files):
    files = coco_files(SIZES)
    for image in range(len(SIZES) - 1):
        files.add(image, [image, 1, 5, 6], category=7)
    return files


@pytest.fixture
def dataset(files):
    return files.read()


def train_batches(dataset, batch_size=2, threads=2, seed=1, rank=0, world=1, **options):
    augment = Augment(short_sides=[12, 16, 20], flip=0.5)
    loader = Loader(batch_size=batch_size, threads=threads, **options)
    return TrainBatches(dataset, PREPROCESS, augment, loader, seed, rank, world)


def take(stream, count):
    with closing(stream):
        return list(itertools.islice(stream, count))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first.keys() - {"targets"}:
        np.testing.assert_array_equal(first[key], second[key])
    for one, other in zip(first["targets"], second["targets"], strict=True):
        for key in ("boxes", "classes", "is_crowd"):
            np.testing.assert_array_equal(one[key], other[key])


def test_the_content_of_a_batch(dataset):
    batch = take(train_batches(dataset).iterate(), 1)[0]
    assert set(batch) == {"images", "image_sizes", "original_sizes", "scales", "image_ids", "targets"}
    assert batch["images"].shape[:2] == (2, 3) and len(batch["targets"]) == 2
    for index in range(2):
        image = int(batch["image_ids"][index]) - 100
        np.testing.assert_allclose(batch["image_sizes"][index], batch["scales"][index] * SIZES[image], rtol=1e-6)
        boxes = batch["targets"][index]["boxes"]
        if image == len(SIZES) - 1:
            assert boxes.shape == (0, 4)
        else:
            np.testing.assert_allclose(boxes[0, 2:] - boxes[0, :2], batch["scales"][index][::-1] * (5, 6), rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(dataset, threads):
    plain = take(train_batches(dataset, threads=0).iterate(), 9)
    for one, other in zip(plain, take(train_batches(dataset, threads=threads).iterate(), 9), strict=True):
        assert_same(one, other)


def test_resuming_anywhere_gives_the_batches_of_an_uninterrupted_run(dataset):
    plain = take(train_batches(dataset).iterate(), 9)  # three epochs of three
    for start in range(9):
        for one, other in zip(plain[start:], take(train_batches(dataset).iterate(start), 9 - start), strict=True):
            assert_same(one, other)


def test_epochs_differ_in_order_and_augmentation(dataset):
    batches = train_batches(dataset, batch_size=7)
    first, second = take(batches.iterate(), 2)
    assert sorted(first["image_ids"]) == sorted(second["image_ids"]) == [100 + number for number in range(7)]
    assert first["image_ids"].tolist() != second["image_ids"].tolist()
    scales = [
        dict(zip(batch["image_ids"].tolist(), batch["scales"][:, 0].tolist(), strict=True)) for batch in (first, second)
    ]
    assert scales[0] != scales[1]
    assert (
        take(train_batches(dataset, batch_size=7, seed=2).iterate(), 1)[0]["image_ids"].tolist()
        != first["image_ids"].tolist()
    )


def test_every_epoch_takes_each_image_at_most_once(dataset):
    batches = train_batches(dataset)
    assert batches.iterations_per_epoch == 3  # 7 images in twos, one left out
    left_out = set()
    for epoch in range(60):
        indices = np.concatenate([batches.indices(epoch * 3 + step) for step in range(3)])
        assert len(set(indices)) == 6
        left_out |= set(range(7)) - set(indices)
    assert left_out == set(range(7))  # not always the same one


def test_ranks_share_an_epoch_without_overlap(dataset):
    ranks = [train_batches(dataset, batch_size=1, rank=rank, world=3) for rank in range(3)]
    assert [batches.iterations_per_epoch for batches in ranks] == [2] * 3
    for epoch in range(5):
        indices = [batches.indices(epoch * 2 + step)[0] for batches in ranks for step in range(2)]
        assert len(set(indices)) == 6


def test_one_epoch_is_the_same_data_for_any_world(dataset):
    alone = [train_batches(dataset, batch_size=1).indices(step)[0] for step in range(6)]
    shared = [train_batches(dataset, 1, rank=step % 2, world=2).indices(step // 2)[0] for step in range(6)]
    assert alone == shared


def test_fewer_images_than_a_global_batch_wrap_around(dataset):
    ranks = [train_batches(dataset, batch_size=5, rank=rank, world=2, group_by_aspect=False) for rank in range(2)]
    assert ranks[0].iterations_per_epoch == 1
    indices = np.concatenate([batches.indices(4) for batches in ranks])
    assert len(indices) == 10 and set(indices) == set(range(7))
    assert indices[7:].tolist() == indices[:3].tolist()
    assert len(take(ranks[1].iterate(), 2)) == 2


def test_batches_share_an_orientation(dataset):
    portrait = np.array([height > width for height, width in SIZES])
    for seed in range(20):
        batches = train_batches(dataset, seed=seed)
        indices = [batches.indices(step) for step in range(3)]
        mixed = [len(set(portrait[batch])) > 1 for batch in indices]
        assert sum(mixed) == portrait[np.concatenate(indices)].sum() % 2  # only where one of each is over
    ungrouped = train_batches(dataset, group_by_aspect=False)
    assert any(len(set(portrait[ungrouped.indices(step)])) > 1 for step in range(30))


def test_originals_on_request(dataset):
    batches = TrainBatches(dataset, PREPROCESS, Augment(), Loader(batch_size=7), seed=0, keep_original=True)
    batch = take(batches.iterate(), 1)[0]
    assert set(batch["flipped"]) == {False, True}
    for image_id, original in zip(batch["image_ids"], batch["original_images"], strict=True):
        assert np.array_equal(original, PREPROCESS.normalize(dataset.load(image_id - 100)))


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_sees_every_image_once_in_batches_of_one_padded_size(dataset, threads):
    batches = EvalBatches(dataset, PREPROCESS, Loader(batch_size=3, threads=threads))
    found = list(batches.iterate())
    assert (len(batches), len(found), batches.image_count) == (4, 4, 7)
    assert [batch["image_ids"].tolist() for batch in found] == [[100, 102, 104], [101, 106], [103], [105]]
    assert [batch["images"].shape[2:] for batch in found] == [(16, 24), (24, 16), (32, 16), (16, 16)]
    assert "targets" not in found[0]
    assert found[0]["image_sizes"].tolist() == [[16, 24], [16, 20], [16, 21]]
    assert len(list(batches.iterate())) == 4  # again


def test_a_batch_comes_once_for_each_view_and_has_one_padded_size_in_all(dataset):
    """At half the size all landscapes but the last are padded to 8 x 16: a batch has one padded size in every view."""
    views = [View(PREPROCESS), View(replace(PREPROCESS, short_side=8, long_side=20), flipped=True)]
    batches = EvalBatches(dataset, PREPROCESS, Loader(batch_size=3), views=views)
    found = list(batches.iterate())
    assert (len(batches), len(found), batches.image_count) == (8, 8, 7)
    assert [batch["image_ids"].tolist() for batch in found[:3]] == [[100, 102, 104]] * 2 + [[101, 106]]
    assert [batch["images"].shape[2:] for batch in found[:2]] == [(16, 24), (8, 16)]
    assert [batch["flipped"].tolist() for batch in found[:2]] == [[False] * 3, [True] * 3]
    half, _ = views[1].preprocess.resize(dataset.load(0))
    np.testing.assert_array_equal(found[1]["images"][0, :, :8, :12], PREPROCESS.normalize(half[:, ::-1]))


def test_batches_with_targets_are_those_of_training_without_augmentation(dataset):
    (first, *_) = list(EvalBatches(dataset, PREPROCESS, Loader(batch_size=3)).iterate_with_targets(keep_original=True))
    assert first["image_ids"].tolist() == [100, 102, 104] and not first["flipped"].any()
    assert [target["boxes"].tolist() for target in first["targets"][:2]] == [[[0, 1, 5, 7]], [[2, 1, 7, 7]]]
    assert [image.shape for image in first["original_images"]] == [(3, 16, 24), (3, 16, 20), (3, 18, 24)]


def test_ranks_share_the_evaluation(dataset):
    shares = [EvalBatches(dataset, PREPROCESS, Loader(batch_size=2), rank, 3) for rank in range(3)]
    found = [[i for batch in share.iterate() for i in batch["image_ids"].tolist()] for share in shares]
    assert found == [[100, 102, 104], [101, 106, 105], [103]]  # batches as of one process, in turn
    assert [(len(share), share.image_count) for share in shares] == [(2, 3), (2, 3), (1, 1)]
    assert list(EvalBatches(dataset, PREPROCESS, Loader(), rank=8, world=9).iterate()) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_bad_image_ends_the_stream_at_its_turn(files, dataset, threads):
    (files.images / "4.png").write_bytes(b"gone bad")
    stream = EvalBatches(dataset, PREPROCESS, Loader(threads=threads)).iterate()
    assert [next(stream)["image_ids"][0] for _ in range(4)] == [100, 101, 102, 103]
    start = time.monotonic()
    with pytest.raises(UserError, match=r"4.png cannot be decoded .*image id 104"):
        next(stream)
    assert time.monotonic() - start < 2
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_unforeseen_error_names_the_image(dataset, threads, monkeypatch):
    monkeypatch.setattr(dataset, "load", lambda index: np.zeros((3, 0, 3), np.uint8)[index:, 9])
    with pytest.raises(RuntimeError, match=r"0.png: IndexError: "):
        next(EvalBatches(dataset, PREPROCESS, Loader(threads=threads)).iterate())


@pytest.mark.parametrize("threads", [0, 2])
def test_memory_that_runs_out_is_reported_as_such(dataset, threads, monkeypatch):
    def load(index: int) -> None:
        raise MemoryError("Unable to allocate 1.00 PiB")

    monkeypatch.setattr(dataset, "load", load)
    with pytest.raises(MemoryError, match=r"0.png: Unable to allocate 1.00 PiB"):
        next(EvalBatches(dataset, PREPROCESS, Loader(threads=threads)).iterate())


def test_a_stuck_image_is_named_after_the_timeout(dataset, monkeypatch):
    release, load = threading.Event(), dataset.load
    monkeypatch.setattr(dataset, "load", lambda index: release.wait(20) if index == 3 else load(index))
    stream = EvalBatches(dataset, PREPROCESS, Loader(batch_size=2, timeout=0.3)).iterate()
    next(stream), next(stream)
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"3.png: not loaded within 0.3 seconds"):
        next(stream)
    assert time.monotonic() - start < 4
    release.set()
    for thread in loader_threads():
        thread.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_that_blocks_is_named(files, dataset, threads):
    stuck = files.images / "1.png"
    stuck.unlink()
    os.mkfifo(stuck)
    stream = EvalBatches(dataset, PREPROCESS, Loader(threads=threads, timeout=0.3)).iterate()
    next(stream)
    with pytest.raises(RunFailed, match=r"1.png: not loaded within 0.3 seconds"):
        next(stream)
    stuck.open("wb").close()  # lets the thread go: it reads an empty file
    for thread in loader_threads():
        thread.join()


def test_without_threads_nothing_is_loaded_ahead(dataset, monkeypatch):
    loaded, load = [], dataset.load
    monkeypatch.setattr(dataset, "load", lambda index: loaded.append(index) or load(index))
    stream = EvalBatches(dataset, PREPROCESS, Loader(batch_size=2, threads=0)).iterate()
    next(stream)
    time.sleep(0.1)
    assert loaded == [0, 2]
    stream.close()


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ppdet_lite loader")]


def test_threads_end_with_the_stream(dataset):
    assert not loader_threads()
    stream = train_batches(dataset).iterate()
    next(stream)
    assert len(loader_threads()) == 2
    stream.close()
    assert not loader_threads()
    stream = train_batches(dataset).iterate()
    next(stream)
    del stream  # nobody closed it
    gc.collect()
    assert not loader_threads()
    assert len(list(EvalBatches(dataset, PREPROCESS, Loader()).iterate())) == 7
    assert not loader_threads()


def test_loading_ahead_is_bounded(dataset, monkeypatch):
    loaded, load = [], dataset.load
    monkeypatch.setattr(dataset, "load", lambda index: loaded.append(index) or load(index))
    stream = train_batches(dataset, batch_size=1, threads=2).iterate()
    next(stream)
    time.sleep(0.3)
    assert 1 <= len(loaded) <= 4
    stream.close()


SCRIPT = """
import os, signal, sys, threading, time
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Preprocess
dataset = CocoDataset(sys.argv[1], sys.argv[2])
load = dataset.load
dataset.load = lambda index: time.sleep(60) if index > 1 else load(index)
stream = EvalBatches(dataset, Preprocess(), Loader()).iterate()
next(stream)
if sys.argv[3] == "interrupt":
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    next(stream); next(stream)
raise ValueError("the consumer fails")
"""


@pytest.mark.parametrize(
    ("how", "message", "code"), [("interrupt", "KeyboardInterrupt", -signal.SIGINT), ("fail", "the consumer fails", 1)]
)
def test_the_program_ends_although_a_thread_is_stuck(files, dataset, how, message, code):
    command = [sys.executable, "-c", SCRIPT, str(files.images), str(files.json), how]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored around here
    )
    assert message in done.stderr and done.returncode == code
    assert time.monotonic() - start < 20
