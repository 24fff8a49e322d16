"""Several datasets as one: classes by name, ids without collisions, and each image as often as its ratio says."""

import json
from collections import Counter

import numpy as np
import pytest

from ppdet_lite.assembly.setup import build_dataset, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.mixed import MixedDataset
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.loader import Loader, TrainBatches
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.evaluation.coco_metric import coco_results, score_file
from ppdet_lite.training.loop import train
from tests.tiny_run import QUICKSTART, small_shapes


@pytest.fixture
def animals(coco_files):
    """Three images, 100 to 102, of cat 3, dog 7, cow 90."""
    files = coco_files([(16, 24), (24, 16), (16, 20)], "animals")
    files.add(0, [1, 2, 3, 4], category=7)
    files.add(1, [5, 6, 7, 8], category=90)
    return files


@pytest.fixture
def farm(coco_files):
    """Two images, 100 and 101, of hen 3 and cow 1; cats and dogs are not annotated."""
    files = coco_files([(16, 24), (20, 30)], "farm")
    files.content["categories"] = [{"id": 3, "name": "hen"}, {"id": 1, "name": "cow"}]
    files.add(0, [2, 2, 4, 4], category=1)
    files.add(1, [3, 3, 5, 5], category=3, iscrowd=1)
    return files


def test_classes_are_merged_by_name(animals, farm):
    mixed = MixedDataset([animals.read(), farm.read()])
    assert mixed.class_names == ["cat", "dog", "cow", "hen"] and mixed.num_classes == 4
    assert mixed.category_ids.tolist() == [3, 7, 90, 91]  # hen's 3 is taken
    assert [mixed.annotations(index).classes.tolist() for index in range(5)] == [[1], [2], [], [2], [3]]
    assert mixed.annotations(4).is_crowd.tolist() == [True]
    assert mixed.annotations(3).boxes.tolist() == [[2, 2, 6, 6]]


def test_what_is_told(animals, farm):
    mixed = MixedDataset([animals.read(), farm.read()])
    absent = "missing from this part of the mixture: background in its images; the first:"
    shared = "4 of 5 images have the id of an image of another part: all are numbered from 1; the first: image 100"
    assert mixed.problem_messages[-2] == f"{farm.json}: 2 of 4 classes are {absent} category 3: cat"
    assert mixed.problem_messages[-1] == f"{animals.json} + {farm.json}: {shared} ({animals.images / '0.png'})"
    taken = "1 of 2 categories has an id that another part uses for another class: renumbered"
    assert f"{farm.json}: {taken}; the first: category 3: hen" in mixed.problem_messages
    assert f"{animals.json}: 1 of 4 classes is {absent} category 91: hen" in mixed.problem_messages
    assert any(note.startswith(f"{animals.json}: 1 of 3 images has no objects") for note in mixed.problem_messages)
    assert len(mixed.problem_messages) == len(mixed.problems) and sum(p.level == "warning" for p in mixed.problems) == 2


def test_missing_images_are_told_or_refused_with_their_part(animals, farm):
    (farm.images / "1.png").unlink()
    mixed = MixedDataset([animals.read(), farm.read()])
    before = len(mixed.problems)
    mixed.check_images(strict=False)
    assert [problem.kind for problem in mixed.problems[before:]] == ["file_missing"]
    assert mixed.problem_messages[-1].startswith(f"{farm.json}: 1 of 2 images has no file")
    with pytest.raises(UserError, match=f"{farm.json}: 1 of 2 images has no file"):
        MixedDataset([animals.read(), farm.read()]).check_images()


def test_swapped_sizes_are_mended(animals, farm):
    for image in farm.content["images"]:
        image["height"], image["width"] = image["width"], image["height"]
    mixed = MixedDataset([animals.read(), farm.read()])
    mixed.check_images()
    assert mixed.sizes[3:].tolist() == [[16, 24], [20, 30]]


def test_empty_classes_are_left_out_on_request(animals, farm):
    """No cat has a box; of crowds alone, a hen has none to learn from."""
    mixed = MixedDataset([animals.read(), farm.read()], drop_empty_classes=True)
    assert mixed.class_names == ["dog", "cow"] and mixed.category_ids.tolist() == [7, 90]
    assert [mixed.annotations(index).classes.tolist() for index in range(5)] == [[0], [1], [], [1], []]
    assert mixed.object_counts.tolist() == [1, 1, 0, 1, 0] and mixed.statistics().boxes.tolist() == [1, 2]
    val = MixedDataset([animals.read(), farm.read()], drop_empty_classes=True, class_names=["cow"])
    assert [val.annotations(index).classes.tolist() for index in range(5)] == [[], [0], [], [0], []]
    assert {"class_left_out", "class_unused"} <= {problem.kind for problem in val.problems}


def test_image_ids_that_collide_are_numbered(animals, farm):
    mixed = MixedDataset([animals.read(), farm.read()])
    assert len(mixed) == 5 and mixed.image_ids.tolist() == [1, 2, 3, 4, 5]
    assert mixed.info(3) == (4, str(farm.images / "0.png"), 16, 24)
    assert mixed.sizes.tolist() == [[16, 24], [24, 16], [16, 20], [16, 24], [20, 30]]
    assert "image_id_shared" in {problem.kind for problem in mixed.problems}
    for image in farm.content["images"]:
        image["id"] += 50
    for annotation in farm.content["annotations"]:
        annotation["image_id"] += 50
    apart = MixedDataset([animals.read(), farm.read()])
    assert apart.image_ids.tolist() == [100, 101, 102, 150, 151]
    assert "image_id_shared" not in {problem.kind for problem in apart.problems}


def test_images_come_from_their_part(animals, farm):
    first, second = animals.read(), farm.read()
    mixed = MixedDataset([first, second])
    for index in range(5):
        expected = first.load(index) if index < 3 else second.load(index - 3)
        assert np.array_equal(mixed.load(index), expected)
    (farm.images / "1.png").write_bytes(b"gone bad")
    with pytest.raises(UserError, match=r"farm.images.1.png cannot be decoded .*image id 101 in .*farm"):
        mixed.load(4)


def test_ground_truth_has_the_merged_numbers(animals, farm):
    truth = MixedDataset([animals.read(), farm.read()]).ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4, 5]
    assert {c["name"]: c["id"] for c in truth["categories"]} == {"cat": 3, "dog": 7, "cow": 90, "hen": 91}
    rows = [(a["id"], a["image_id"], a["category_id"], a["bbox"]) for a in truth["annotations"]]
    assert rows == [
        (1, 1, 7, [1, 2, 3, 4]),
        (2, 2, 90, [5, 6, 7, 8]),
        (3, 4, 90, [2, 2, 4, 4]),
        (4, 5, 91, [3, 3, 5, 5]),
    ]


def test_finding_everything_is_an_ap_of_one(animals, farm, tmp_path):
    """Classes 0..K-1 of what is found meet the merged categories, ids and all."""
    mixed = MixedDataset([animals.read(), farm.read()])
    found = []
    for index in range(len(mixed)):
        objects = mixed.annotations(index)
        ones = np.ones(len(objects.boxes), np.float32)
        found.append(ImageDetections(mixed.info(index).id, objects.boxes, ones, objects.classes))
    (tmp_path / "bbox.json").write_text(json.dumps(list(coco_results(found, mixed.category_ids))))
    metrics = score_file(mixed, tmp_path / "bbox.json")
    assert metrics["AP"] == pytest.approx(1) and metrics["per_class"]["cow"] == pytest.approx(1)


def test_prescribed_classes(animals, farm):
    parts = [animals.read(), farm.read()]
    mixed = MixedDataset(parts, class_names=["hen", "cow", "dog", "cat"])
    assert mixed.category_ids.tolist() == [91, 90, 7, 3]
    assert [mixed.annotations(index).classes.tolist() for index in range(5)] == [[2], [1], [], [1], [0]]
    with pytest.raises(UserError, match="only in the file: hen; missing in the file: bird"):
        MixedDataset(parts, class_names=["cow", "dog", "cat", "bird"])


@pytest.mark.parametrize(
    ("ratios", "drawn"),
    [
        (None, [1, 1, 1, 1, 1]),
        ([1, 2], [1, 1, 1, 2, 2]),
        ([1, 2.5], [1, 1, 1, 5]),  # one of the two images thrice
        ([1.5, 0.5], [5, 1]),  # 3 * 1.5 = 4.5 and 2 * 0.5 = 1: five of the one part, one of the other
    ],
)
def test_an_epoch_has_each_image_as_often_as_the_ratio_says(animals, farm, ratios, drawn):
    mixed = MixedDataset([animals.read(), farm.read()], ratios)
    assert mixed.epoch_length == sum(drawn)
    in_all = Counter()
    for epoch in range(40):
        draws = mixed.draw_epoch(np.random.default_rng(epoch))
        assert len(set(draws.tolist())) == len(draws) == mixed.epoch_length  # a copy is another draw
        times = Counter((draws % 5).tolist())
        in_all += times
        for index, count in times.items():
            ratio = 1 if ratios is None else ratios[index // 3]
            assert int(ratio) <= count <= int(ratio) + (ratio % 1 > 0)
        assert sum(count for index, count in times.items() if index < 3) == sum(drawn) - sum(
            count for index, count in times.items() if index >= 3
        )
    if ratios == [1.5, 0.5]:
        assert 10 < in_all[3] < 30 and in_all[3] + in_all[4] == 40  # either of the two, anew in each epoch


def test_resuming_gives_the_batches_of_an_uninterrupted_run(animals, farm):
    mixed = MixedDataset([animals.read(), farm.read()], [1.5, 2])
    augment, loader = Augment(short_sides=[8, 16, 24]), Loader(batch_size=2, threads=2)
    batches = TrainBatches(mixed, Preprocess(stride=8), augment, loader, seed=4)
    assert batches.iterations_per_epoch == 4  # (5 + 4) // 2
    plain, resumed = batches.iterate(), batches.iterate(5)
    expected = [next(plain) for _ in range(9)][5:]
    for one in expected:
        other = next(resumed)
        assert np.array_equal(one["images"], other["images"]) and np.array_equal(one["image_ids"], other["image_ids"])
    plain.close(), resumed.close()


def test_copies_of_an_image_are_augmented_apart(animals, farm):
    mixed = MixedDataset([animals.read(), farm.read()], [1, 6])
    augment = Augment(short_sides=list(range(8, 40)), flip=0.0)
    batches = TrainBatches(mixed, Preprocess(stride=1), augment, Loader(batch_size=1, threads=1), seed=0)
    assert batches.iterations_per_epoch == 15
    stream = batches.iterate()
    found = [next(stream) for _ in range(15)]
    stream.close()
    assert [batch["image_ids"][0] - 1 for batch in found] == [batches.indices(i)[0] for i in range(15)]
    scales = {float(batch["scales"][0, 0]) for batch in found if batch["image_ids"][0] == 4}
    assert len(scales) > 3


def test_a_bad_image_that_comes_often_is_replaced_by_others(animals, farm):
    (farm.images / "0.png").write_bytes(b"gone bad")
    mixed = MixedDataset([animals.read(), farm.read()], [1, 8])
    loader = Loader(batch_size=1, on_bad_image="skip")
    batches = TrainBatches(mixed, Preprocess(short_side=8), Augment(), loader, seed=0)
    stream = batches.iterate()
    seen = Counter(int(next(stream)["image_ids"][0]) for _ in range(batches.iterations_per_epoch))
    stream.close()
    assert 4 not in seen and seen.total() == 19 and batches.bad_images.count == 1


def test_a_config_says_it(animals, farm, tmp_path):
    animals.write()
    farm.write()
    parts = [f"{{images: {files.images}, annotations: {files.json}}}" for files in (animals, farm)]
    train = f"data.train={{type: MixedDataset, parts: [{', '.join(parts)}], ratios: [1, 0.5]}}"
    val = f"data.val={{type: MixedDataset, parts: [{', '.join(parts)}]}}"
    config = load_config(QUICKSTART, [train, val])
    saved = tmp_path / "config.yml"
    saved.write_text(config.dump())
    assert load_config(saved) == config
    dataset = build_dataset(config, "train")
    assert len(build_dataset(config, "val", dataset.class_names)) == 5
    with pytest.raises(UserError, match=r"command line: data.val.ratios: only for training"):
        build_dataset(load_config(QUICKSTART, [train, val, "data.val.ratios=[1, 1]"]), "val")
    assert len(dataset) == 5 and dataset.epoch_length == 4
    with pytest.raises(UserError, match=r"command line: data.train.ratios: expected one number for each of the 2"):
        build_dataset(load_config(QUICKSTART, [train, "data.train.ratios=[1, 2, 3]"]), "train")
    with pytest.raises(UserError, match=r"data.train.ratios.1: expected more than 0, got -2"):
        load_config(QUICKSTART, [train, "data.train.ratios=[1, -2]"])


def test_what_is_refused(animals, farm):
    parts = [animals.read(), farm.read()]
    with pytest.raises(UserError, match=r"ratio 0.2 takes none of the 2 images of .*; make it 0.5 or more"):
        MixedDataset(parts, [1, 0.2])
    for wrong in ([], [parts[0], MixedDataset(parts)]):
        with pytest.raises(UserError, match="expected a list of datasets that are not MixedDataset themselves"):
            MixedDataset(wrong)


def test_a_run_trains_and_evaluates_on_a_mixture(tmp_path):
    """The second set lacks a class and has other ids; classes and ids are those of the first."""
    shapes = small_shapes(tmp_path / "shapes", train=3, val=2)
    options = [option for option in shapes if not option.startswith(("data.train", "data.val"))]
    first = tmp_path / "shapes/annotations/instances_train.json"
    content = json.loads(first.read_text())
    gone, *kept = content["categories"]
    for category in kept:
        category["id"] += 40
    content["categories"] = kept
    content["annotations"] = [a | {"category_id": a["category_id"] + 40} for a in content["annotations"]]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != gone["id"] + 40]
    (tmp_path / "second.json").write_text(json.dumps(content))
    parts = [f"{{images: {tmp_path}/shapes/train, annotations: {file}}}" for file in (first, tmp_path / "second.json")]
    mixed = [f"{{type: MixedDataset, parts: [{', '.join(parts)}]{more}}}" for more in (", ratios: [1, 0.34]", "")]
    options += [f"data.train={mixed[0]}", f"data.val={mixed[1]}", "train.length=1 epoch", "train.preview_images=0"]
    train(load_config(QUICKSTART, options), tmp_path / "run", evaluate_at_end=True)
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("second.json: 1 of 6 classes is missing from this part of the mixture: background") == 2
    assert "4 iterations per epoch" in log
    classes = json.loads((tmp_path / "run/classes.json").read_text())
    assert classes == json.loads(first.read_text())["categories"]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["images"] == 6 and list(metrics["per_class"]) == [entry["name"] for entry in classes]
