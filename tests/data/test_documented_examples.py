"""The examples of dataset/README.md are configs."""

import re
from pathlib import Path

import pytest

from ppdet_lite.assembly.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "dataset/README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples():
    assert sum("MixedDataset" in text for text in EXAMPLES) == sum("color_jitter" in text for text in EXAMPLES) == 1


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_config(text, tmp_path):
    file = tmp_path / "mine.yml"
    base = ROOT / "configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
    file.write_text(f"_base_: {base}\n{text}", encoding="utf-8")
    load_config(file)
