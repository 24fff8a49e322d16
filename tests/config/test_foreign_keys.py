"""Settings under the names of other projects: the message contains ours."""

import re
from pathlib import Path

import pytest

from ppdet_lite.assembly.recipe import Recipe
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config.foreign_keys import FOREIGN_KEYS
from ppdet_lite.config.registry import parameters, slot_of
from ppdet_lite.core.errors import UserError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart/shapes_r18_fpn.yml"


def paths_of(cls: type, path: str = "") -> set[str]:
    """Return the dotted path of every key of the schema, whichever component is chosen."""
    found = set()
    for name, parameter in parameters(cls).items():
        if not parameter.derived:
            found.add(f"{path}{name}")
            slot = slot_of(parameter.hint)
            for choice in slot.choices.values() if slot else ():
                found |= set() if slot.is_list else paths_of(choice, f"{path}{name}.")
    return found


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("lr", "use optimizer.base_lr"),
        ("optimizer.lr", "use optimizer.base_lr"),
        ("train.lr", "use optimizer.base_lr"),
        ("epochs", "use train.length: 12 epochs"),
        ("train.epochs", "use train.length: 12 epochs"),
        ("batch_size", "use data.loader.batch_size"),
        ("train.batch_size", "use data.loader.batch_size"),
        ("num_classes", "is derived from the categories in the annotations, remove it"),
        ("model.NUM_CLASSES", "is derived from the categories in the annotations, remove it"),
        ("seed", "use runtime.seed"),
        ("use_gpu", "use runtime.device"),
        ("LearningRate", "use optimizer.base_lr"),
        ("SOLVER", "use optimizer"),
        ("work_dir", "use output"),
        ("model.rpn.nms_thresh", "use model.rpn.nms_iou"),
        ("model.postprocess.nms_thresh", "use model.postprocess.nms_iou"),
        ("model.neck.norm_type", "did you mean norm?"),
        ("weight_decay", "use optimizer.weight_decay"),
        ("resume_from", "use the option --resume auto"),
        ("trian", "did you mean train?"),
    ],
)
def test_the_message_names_ours(key: str, ours: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(QUICKSTART, [f"{key}=1"])
    assert str(error.value).startswith(f"command line: {key}: ")
    assert str(error.value).endswith(ours)


def test_every_suggestion_exists() -> None:
    """Paths of the schema, followed by an example or another key of the section."""
    known = paths_of(Recipe)
    for ours in {name for names in FOREIGN_KEYS.values() for name in names} - {"the option --resume auto"}:
        path, other = re.fullmatch(r"([\w.]+)(?:: .*| and (\w+))?", ours).groups()
        assert path in known, ours
        assert other is None or f"{path.rpartition('.')[0]}.{other}" in known, ours


def test_every_name_is_suggested_at_the_root() -> None:
    """Unless the root has a key of that name."""
    names = sorted(FOREIGN_KEYS.keys() - parameters(Recipe).keys())
    with pytest.raises(UserError) as error:
        load_config(QUICKSTART, [f"{name}=1" for name in names])
    lines = str(error.value).split("\n")
    assert [line.split(": ")[1] for line in lines] == names
    assert all("; use " in line for line in lines)
