"""`train --data` recognizes every format that can be imported, and needs no option for it."""

import json
from pathlib import Path

import pytest

from ppdet_lite.assembly.own_data import prepare_own_data
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.data.annotations.other_formats import NAMES, formats_of
from tests.importing.test_convert import WRITERS, drawn_boxes


def test_all_formats_are_tested():
    assert set(WRITERS) == set(NAMES)


@pytest.mark.parametrize("form", WRITERS)
def test_a_folder_of_any_format_becomes_a_config(source, tmp_path, monkeypatch, form):
    truth = {name: (h, w, [("cat", 2, 3, 14, 12)]) for name, (h, w, _) in drawn_boxes(source).items()}
    WRITERS[form](source, truth)
    assert list(formats_of(source.folder)) == [form]
    monkeypatch.chdir(tmp_path)
    path = prepare_own_data(source.folder, "random")
    assert path == Path("dataset/source/detector_random.yml")
    data = load_config(path)["data"]
    sets = [json.loads(Path(data[name]["annotations"]).read_text(encoding="utf-8")) for name in ("train", "val")]
    assert [len(one["images"]) for one in sets] == [len(truth) - 1, 1]
    assert sum(len(one["annotations"]) for one in sets) == len(truth)
