"""Extreme values in every scalar of the schema: a config is accepted and builds, or is refused in one line."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from ppdet_lite.assembly import setup
from ppdet_lite.config import registry, type_hints
from ppdet_lite.config.checked_config import Config, to_plain
from ppdet_lite.config.load import load_tree
from ppdet_lite.config.merge import apply_overrides
from ppdet_lite.config.registry import Parameter, build, parameters, slot_of
from ppdet_lite.config.yaml_nodes import Node, flow
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling import residual
from ppdet_lite.training.plan import make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FPN, SHAPES = CONFIGS / "gn/faster_rcnn_r50_fpn_gn_all_2x_coco.yml", CONFIGS / "quickstart/shapes_r18_fpn.yml"
C4, DC5 = CONFIGS / "faster_rcnn/faster_rcnn_r50_1x_coco.yml", CONFIGS / "faster_rcnn/faster_rcnn_r50_dc5_1x_coco.yml"
SCENES = {  # together they have every component
    "cascade": (CONFIGS / "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.yml", []),
    "FPN": (FPN, ["model.backbone.deformable={}", "model.mimic={}", "train.ema={}", "data.augment.color_jitter={}"]),
    "shapes": (SHAPES, ["model.roi_pool={type: DeformRoIPool}", "data.augment={scale_jitter: {}, crop: {}}"]),
    "C4": (C4, ["data.train={type: MixedDataset, parts: [{images: a, annotations: b}], ratios: [1.0]}"]),
    "DC5": (DC5, ["model.roi_pool={type: DeformPSRoIPool}"]),
}
EXTREMES = [0, 1, -1, 2, 3, 64, 2**14, 2**16, 2**31 - 1, 2**31, 2**63, 2**64 - 1, 2**64, 10**400, -(10**30)]
EXTREMES += [0.0, -0.0, 0.5, 1.0, 1e-12, 5e-324, 1e12, 1.7e308, float("inf"), float("-inf"), float("nan"), 1e-4]
EXTREMES += ["", "a", "${a}", "${model}", "12 epochs", "0 iterations", f"{10**30} epochs", "\x00", "x" * 1000]
EXTREMES += [None, True, False, [], {}, [[]], [0], {"": 0}]


FEW = settings(max_examples=4, phases=[Phase.generate], derandomize=True, deadline=None, database=None)


class Leaf(NamedTuple):
    """A parameter that is no component, with its place in a scene."""

    scene: str
    path: str
    owner: type
    parameter: Parameter
    value: Any


@functools.cache
def adapter_of(hint: str) -> list[TypeAdapter]:
    return []


def cached_adapter(hint: Any) -> TypeAdapter:
    """Return pydantic's adapter of a hint; building it takes most of the time of a check."""
    adapters = adapter_of(repr(hint))
    if not adapters:
        adapters.append(TypeAdapter(hint))
    return adapters[0]


@functools.cache
def tree_of(scene: str) -> Node:
    path, overrides = SCENES[scene]
    return load_tree(path, overrides)


def load(scene: str, *overrides: str) -> Config:
    """Load a scene, whose file is read only once, with overrides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_hints, "TypeAdapter", cached_adapter)
        patch.setattr(setup, "load_tree", lambda path, options: apply_overrides(tree_of(scene), options))
        return setup.load_config(scene, overrides)


def leaves_of(scene: str, config: Config, path: str = "") -> Iterator[Leaf]:
    for name, parameter in parameters(config.component).items():
        below = f"{path}.{name}".lstrip(".")
        if parameter.derived:
            continue
        if slot_of(parameter.hint) is None:
            yield Leaf(scene, below, config.component, parameter, to_plain(config[name]))
        for part in config[name] if isinstance(config[name], list) else [config[name]]:
            if isinstance(part, Config) and part.component is not None:
                yield from leaves_of(scene, part, below if part is config[name] else f"{below}.0")


LEAVES = {(x.owner, x.parameter.name): x for scene in SCENES for x in leaves_of(scene, load(scene))}


def test_the_scenes_have_every_parameter_of_the_registry() -> None:
    parts = [
        (cls, parameter.name)
        for cls in registry._registry.values()
        if cls.__module__.startswith("ppdet_lite.")
        for parameter in parameters(cls).values()
        if not parameter.derived and slot_of(parameter.hint) is None
    ]
    assert set(parts) == set(LEAVES)


def values_for(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Extreme and random values, and the value of the scene with one item replaced by them."""
    scalars = st.sampled_from(EXTREMES) | st.integers() | st.floats() | st.text(max_size=5)
    if isinstance(leaf.value, list) and leaf.value:
        rest = leaf.value[1:]
        return scalars | scalars.map(lambda x: [x, *rest]) | st.lists(scalars, max_size=6)
    return scalars | scalars.map(lambda x: {"backbone.*": x}) if leaf.parameter.name == "lr_scales" else scalars


def build_all(config: Config, with_model: bool) -> None:
    """Build what a run builds without data. Floating-point overflow is an error."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        preprocess = build(config["data"]["preprocess"])
        assert np.isfinite(preprocess._tables).all()
        build(config["eval"]), build(config["runtime"]), build(config["optimizer"]).scaled_lr(16)
        plan = make_plan(config, 10)
        assert np.isfinite(build(config["schedule"]).factor(5, plan.total, 10))
        if with_model:
            model = setup.build_uninitialized(config, ["cat", "dog"])
            for sizes in model.rpn.anchors.sizes:
                assert np.isfinite(model.rpn.anchors.base_anchors(sizes)).all()


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=lambda leaf: leaf.path)
@settings(FEW)
@given(data=st.data())
def test_accepted_or_refused_in_one_line(leaf: Leaf, data: st.DataObject) -> None:
    value = data.draw(values_for(leaf))
    with pytest.MonkeyPatch.context() as patch:
        for depth in residual.BLOCKS_PER_STAGE:
            patch.setitem(residual.BLOCKS_PER_STAGE, depth, (1, 1, 1, 1))
        try:
            config = load(leaf.scene, f"{leaf.path}={flow(value)}")
            build_all(config, leaf.path.startswith("model.") or leaf.path == "data.preprocess.stride")
        except UserError as error:
            for line in str(error).split("\n"):  # one for each wrong item of a list
                assert re.fullmatch(r"[^:]+(:\d+)?: \w+(\.[^:]*)*: .+", line), line


def numbers_in(hint: Any, bounds: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the bounds of every int and float in a type hint."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        for item in metadata:
            bounds += tuple(item.metadata) if isinstance(item, FieldInfo) else (item,)
        yield from numbers_in(inner, bounds)
    elif hint in (int, float):
        yield bounds
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from numbers_in(part)


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=lambda leaf: leaf.path)
def test_every_number_has_two_bounds(leaf: Leaf) -> None:
    for bounds in numbers_in(leaf.parameter.hint):
        assert any(isinstance(bound, Gt | Ge) for bound in bounds) and any(isinstance(x, Lt | Le) for x in bounds)


def test_the_seed_has_the_bound_of_the_generators() -> None:
    load("shapes", f"runtime.seed={2**64 - 1}")
    with pytest.raises(UserError) as error:
        load("shapes", f"runtime.seed={2**64}")
    assert str(error.value) == f"command line: runtime.seed: expected less than {2**64}, got {2**64}"
