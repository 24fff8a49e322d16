"""Charts contain the names of what they show."""

import base64
import re

import numpy as np
import pytest

from ppdet_lite.reporting.charts import MAX_CONFUSION_SIDE, confusion_chart


@pytest.mark.parametrize(("classes", "every"), [(3, 1), (80, 1), (365, 3)])
def test_the_confusion_chart_names_its_classes(classes, every):
    """On both axes, shortened; with too many of them, every n-th, so that the names do not overlap."""
    names = [f"class {k} with a rather long name" for k in range(classes)] + ["background"]
    url = confusion_chart(np.eye(classes + 1), names)
    svg = base64.b64decode(url.split(",")[1]).decode()
    found = re.findall(r">(class [0-9]+ with a rath[^<]*…|background)<", svg)
    shown = [name if name == "background" else f"{name[:23]}…" for name in names[::every]]
    assert found == shown * 2
    assert float(re.search(r'width="([0-9.]+)pt"', svg)[1]) <= 72 * MAX_CONFUSION_SIDE
