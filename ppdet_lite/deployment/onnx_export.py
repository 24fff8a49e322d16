"""A saved Paddle graph as an ONNX file, in standard operators alone."""

import graphlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ppdet_lite
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.deployment.description import SECTION, Description
from ppdet_lite.storage.files import require_space

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

PACKAGES = ("onnx", "onnxruntime", "paddle2onnx")
CONVERT = "ppdet_lite.deployment.onnx_convert"
DIMENSIONS = {  # free ones by name, N images with M detections
    "image": ("N", 3, "H", "W"),
    "im_shape": ("N", 2),
    "scale_factor": ("N", 2),
    "fetch_name_0": ("M", 6),
    "fetch_name_1": ("N",),
}


def require_packages() -> None:
    """Raise UserError, saying what to install, where a package is missing that ONNX export needs."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX export needs {', '.join(missing)}: pip install -r requirements-onnx.txt")


def save_onnx(folder: Path, file: Path, description: Description) -> None:
    """Convert the graph in a folder that `save_graph` wrote, and write an ONNX file that describes itself.

    Raises RunFailed, naming the operator if it is known, where that fails; OSError if the file cannot be written.
    """
    import onnx

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        cuts = _convert(folder, Path(scratch))
        model = closed(onnx.load(str(Path(scratch) / "converted.onnx")), cuts)
    model.producer_name, model.producer_version = "ppdet_lite", ppdet_lite.__version__
    onnx.helper.set_model_props(model, {SECTION: description.to_json()})
    _name_dimensions(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def _convert(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Run paddle2onnx in a process of its own, which leaves its results in a scratch folder; what it cut out."""
    root = str(Path(ppdet_lite.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", CONVERT, str(folder), str(scratch)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if ended.returncode == 0:
        return json.loads((scratch / "cuts.json").read_text(encoding="utf-8"))["cuts"]
    require_space(scratch)
    raise RunFailed(f"paddle2onnx {importlib.metadata.version('paddle2onnx')} {_why(scratch, ended.stderr)}")


def _why(scratch: Path, output: str) -> str:
    """What a conversion that ended too early says of the reason."""
    told = scratch / "cuts.json"
    unknown = json.loads(told.read_text(encoding="utf-8"))["unknown"] if told.exists() else []
    if unknown:
        return f"cannot convert {', '.join(unknown)}; make it of other operators, or choose --format paddle"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or ["without a word"]
    return f"failed: {errors[0]}; choose --format paddle, or another version of it"


def closed(model: "ModelProto", cuts: Sequence[dict[str, Any]]) -> "ModelProto":
    """A converted model, with what was cut out put in again, in ONNX's own operators.

    Raises RunFailed if an operator of another domain is left, which not every runtime has.
    """
    import onnx.inliner

    from ppdet_lite.deployment import onnx_operators

    graph, loose = model.graph, {name for cut in cuts for name in (*cut["inputs"], cut["output"])}
    for cut in cuts:
        graph.node.extend(onnx_operators.replacement(**cut))
    for values in (graph.input, graph.output):
        _keep(values, [value for value in values if value.name not in loose])
    del graph.value_info[:]
    _order(graph)
    model.functions.extend(onnx_operators.functions())
    model.opset_import.append(onnx.helper.make_opsetid(onnx_operators.DOMAIN, 1))
    model = onnx.inliner.inline_local_functions(model)
    if foreign := sorted({node.domain for node in nodes(model.graph)} - {""}):
        raise RunFailed(f"the ONNX graph has operators of {', '.join(foreign)}, which not every runtime has")
    _keep(model.opset_import, [opset for opset in model.opset_import if not opset.domain])
    return model


def nodes(graph: "GraphProto") -> Iterator["NodeProto"]:
    """All nodes of a graph, those in branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def _order(graph: "GraphProto") -> None:
    """Put the nodes that an output needs into an order in which each comes after what it reads; drop the others."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    reads: dict[int, set[int]] = {}
    wanted = [maker[output.name] for output in graph.output]
    while wanted:
        i = wanted.pop()
        if i not in reads:
            reads[i] = {maker[name] for name in graph.node[i].input if name in maker}
            wanted += reads[i]
    _keep(graph.node, [graph.node[i] for i in graphlib.TopologicalSorter(reads).static_order()])
    used = {name for node in graph.node for name in node.input}
    _keep(graph.initializer, [weight for weight in graph.initializer if weight.name in used])


def _keep(field: Any, kept: list[Any]) -> None:
    """Have a repeated protobuf field hold these messages alone."""
    del field[:]
    field.extend(kept)


def _name_dimensions(model: "ModelProto") -> None:
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        for dimension, name in zip(shape, DIMENSIONS[value.name], strict=True):
            if isinstance(name, str):
                dimension.dim_param = name
