"""Bad training images: each is logged once and replaced by the next good one; too many of them end the run."""

import itertools
import logging
from contextlib import closing

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.bad_images import MAX_LOGGED, MIN_READ, BadImages
from ppdet_lite.data.loading.loader import EvalBatches, Loader, TrainBatches
from ppdet_lite.data.loading.transforms import Preprocess

COUNT = 8
PREPROCESS = Preprocess(short_side=8, stride=8)


@pytest.fixture
def files(coco_files):
    return coco_files([(8, 9 + number % 3) for number in range(COUNT)])


def damage(files, *images):
    for image in images:
        (files.images / f"{image}.png").write_bytes(b"gone bad")


def train_batches(dataset, threads=2, **options):
    loader = Loader(batch_size=2, threads=threads, on_bad_image="skip")
    return TrainBatches(dataset, PREPROCESS, Augment(), loader, seed=3, **options)


def take(batches, count, start=0):
    with closing(batches.iterate(start)) as stream:
        return list(itertools.islice(stream, count))


def ids(found):
    return [batch["image_ids"].tolist() for batch in found]


def replaced_by_hand(batches, bad, iterations):
    """Return the expected ids: the epoch's order with each bad image replaced by the next good one."""
    expected = []
    for epoch in range(iterations // batches.iterations_per_epoch):
        first = epoch * batches.iterations_per_epoch
        order = [int(i) for step in range(batches.iterations_per_epoch) for i in batches.indices(first + step)]
        for place in range(0, len(order), 2):
            pair = []
            for slot in (place, place + 1):
                while order[slot % len(order)] in bad:
                    slot += 1
                pair.append(100 + order[slot % len(order)])
            expected.append(pair)
    return expected


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_bad_image_is_replaced_by_the_next_good_one_of_the_epoch(files, threads):
    damage(files, 2, 5)
    (files.images / "6.png").unlink()
    batches = train_batches(files.read(), threads)
    found = take(batches, 12)
    assert ids(found) == replaced_by_hand(batches, {2, 5, 6}, 12)
    assert batches.bad_images.count == 3


def test_resuming_replaces_by_the_same_images(files):
    damage(files, 0, 7)
    plain = take(train_batches(files.read()), 8)
    resumed = take(train_batches(files.read()), 3, start=5)
    for one, other in zip(plain[5:], resumed, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
        assert one["image_ids"].tolist() == other["image_ids"].tolist()


def test_without_bad_images_skipping_changes_nothing(files):
    dataset = files.read()
    plain = TrainBatches(dataset, PREPROCESS, Augment(), Loader(batch_size=2), seed=3)
    assert ids(take(plain, 6)) == ids(take(train_batches(dataset), 6))
    assert plain.bad_images.count == 0


def test_each_bad_image_is_logged_once_with_its_reason(files, caplog):
    damage(files, 4)
    batches = train_batches(files.read(), threads=3)
    with caplog.at_level(logging.WARNING):
        take(batches, 12)
        batches.bad_images.log_summary()
    line, total = caplog.messages
    assert line.startswith("replaced by another image: ") and "4.png cannot be decoded" in line
    assert total == f"unusable training images that were replaced: 1 of the {COUNT} read"


def test_an_image_of_another_size_is_replaced_too(files, caplog):
    files.content["images"][1]["height"] = 99
    batches = train_batches(files.read())
    with caplog.at_level(logging.WARNING):
        take(batches, 4)
    assert ["1.png is 10x8" in line and "10x99" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize("threads", [0, 2])
def test_mostly_bad_images_end_the_run(files, threads):
    damage(files, *range(5))
    with pytest.raises(UserError, match=rf"[56] of {COUNT} training images cannot be used.*the first: .*png"):
        take(train_batches(files.read(), threads), 8)


def test_half_of_the_images_bad_is_no_majority(files):
    damage(files, *range(COUNT // 2))
    assert len(take(train_batches(files.read()), 8)) == 8


def test_all_images_bad(coco_files):
    files = coco_files([(8, 8)] * (MIN_READ + 5))
    damage(files, *range(MIN_READ + 5))
    with pytest.raises(UserError, match=f"{MIN_READ} of {MIN_READ} training images cannot be used"):
        take(train_batches(files.read()), 1)


def test_an_error_is_the_default_and_evaluation_never_skips(files):
    damage(files, 0)
    dataset = files.read()
    with pytest.raises(UserError, match=r"0.png cannot be decoded"):
        take(TrainBatches(dataset, PREPROCESS, Augment(), Loader(batch_size=8), seed=3), 1)
    with pytest.raises(UserError, match=r"0.png cannot be decoded"):
        next(EvalBatches(dataset, PREPROCESS, Loader(on_bad_image="skip")).iterate())


def test_other_errors_are_not_skipped(files, monkeypatch):
    dataset = files.read()
    monkeypatch.setattr(dataset, "annotations", lambda index: 1 // 0)
    with pytest.raises(RuntimeError, match="png: ZeroDivisionError"):
        take(train_batches(dataset), 1)


def test_all_are_counted_and_the_first_are_logged(caplog):
    bad_images = BadImages(100)
    with caplog.at_level(logging.WARNING):
        bad_images.record(range(100), {index: f"reason {index}" for index in range(MAX_LOGGED + 3)})
        bad_images.record([1], {1: "reason 1"})
        bad_images.log_summary()
    assert len(caplog.messages) == MAX_LOGGED + 1
    assert caplog.messages[MAX_LOGGED - 1].endswith(f"reason {MAX_LOGGED - 1}; further ones are only counted")
    assert caplog.messages[-1].endswith(f"replaced: {MAX_LOGGED + 3} of the 100 read")


def test_a_majority_among_few_images_does_not_end_the_run():
    bad_images = BadImages(100)
    bad_images.record(range(MIN_READ - 1), dict.fromkeys(range(MIN_READ - 1), "why"))
    with pytest.raises(UserError, match=f"{MIN_READ} of {MIN_READ} .*the first: why"):
        bad_images.record([MIN_READ - 1], {MIN_READ - 1: "and that"})
