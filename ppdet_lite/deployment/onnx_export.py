"""Conversion of a saved Paddle graph to an ONNX file that contains standard operators only.

1. `onnx_convert`, in a separate process, removes the operators that paddle2onnx does not support or converts wrongly,
   and has paddle2onnx convert the remaining graph.
2. `insert_replacements` adds the nodes that `onnx_operators` builds for the removed operators.
3. `save_onnx` adds the description as metadata, checks the model and writes it.
"""

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
INT8_PACKAGES = ("ml_dtypes",)  # which onnxruntime.quantization imports without requiring it
NO_PADDLE2ONNX = (3, 13)  # the first version of Python without wheels of paddle2onnx 2.1
CONVERT = "ppdet_lite.deployment.onnx_convert"
DIMENSIONS = {  # of the graph's inputs and outputs; letters are dynamic: N images with M detections
    "image": ("N", 3, "H", "W"),
    "im_shape": ("N", 2),
    "scale_factor": ("N", 2),
    "fetch_name_0": ("M", 6),
    "fetch_name_1": ("N",),
}


def require_packages(int8: bool = False) -> None:
    """Raise UserError, with the command to install them, if packages for ONNX export, and for int8, are missing."""
    missing = [name for name in (*PACKAGES, *(INT8_PACKAGES if int8 else ())) if importlib.util.find_spec(name) is None]
    if "paddle2onnx" in missing and sys.version_info >= NO_PADDLE2ONNX:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UserError(
            f"ONNX export needs paddle2onnx, which has no wheels for Python {version}: export with Python 3.10 to 3.12"
        )
    if missing:
        raise UserError(f"ONNX export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def save_onnx(folder: Path, file: Path, description: Description) -> None:
    """Convert the graph that `save_graph` wrote into a folder, and write an ONNX file with the description in it.

    Raises RunFailed, with the unsupported operators if there are any, if that fails; OSError if the file cannot be
    written.
    """
    import onnx

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        cuts = _convert(folder, Path(scratch))
        model = insert_replacements(onnx.load(str(Path(scratch) / "converted.onnx")), cuts)
    model.producer_name, model.producer_version = "ppdet_lite", ppdet_lite.__version__
    onnx.helper.set_model_props(model, {SECTION: description.to_json()})
    _name_dimensions(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def _convert(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Run `onnx_convert`, which writes its results into the scratch folder; return the operators that it removed."""
    root = str(Path(ppdet_lite.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", CONVERT, str(folder), str(scratch)]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if process.returncode == 0:
        return json.loads((scratch / "cuts.json").read_text(encoding="utf-8"))["cuts"]
    require_space(scratch)
    raise RunFailed(
        f"paddle2onnx {importlib.metadata.version('paddle2onnx')} {_failure_reason(scratch, process.stderr)}"
    )


def _failure_reason(scratch: Path, output: str) -> str:
    """Describe why a conversion failed: unsupported operators, else the first error in its output."""
    report = scratch / "cuts.json"
    unsupported = json.loads(report.read_text(encoding="utf-8"))["unsupported"] if report.exists() else []
    if unsupported:
        return f"cannot convert {', '.join(unsupported)}; use other operators, or choose --format paddle"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or ["no error message"]
    return f"failed: {errors[0]}; choose --format paddle, or install another version of paddle2onnx"


def insert_replacements(model: "ModelProto", cuts: Sequence[dict[str, Any]]) -> "ModelProto":
    """Add the replacements of the removed operators to a converted model. cuts: fields of `onnx_convert.Cut`.

    The temporary graph inputs and outputs of the cuts are removed, and the functions in `onnx_operators` are inlined.
    Raises RunFailed if the model then has an operator outside ONNX's standard domain, which not every runtime supports.
    """
    import onnx.inliner

    from ppdet_lite.deployment import onnx_operators

    graph, cut_names = model.graph, {name for cut in cuts for name in (*cut["inputs"], cut["output"])}
    for cut in cuts:
        graph.node.extend(onnx_operators.replacement(**cut))
    for values in (graph.input, graph.output):
        _replace_items(values, [value for value in values if value.name not in cut_names])
    del graph.value_info[:]
    _sort_nodes(graph)
    model.functions.extend(onnx_operators.functions())
    model.opset_import.append(onnx.helper.make_opsetid(onnx_operators.DOMAIN, 1))
    model = onnx.inliner.inline_local_functions(model)
    if foreign := sorted({node.domain for node in nodes(model.graph)} - {""}):
        raise RunFailed(f"the ONNX graph has operators of {', '.join(foreign)}, which not every runtime supports")
    _replace_items(model.opset_import, [opset for opset in model.opset_import if not opset.domain])
    return model


def nodes(graph: "GraphProto") -> Iterator["NodeProto"]:
    """Yield all nodes of a graph, including those in branches and loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def _sort_nodes(graph: "GraphProto") -> None:
    """Sort the nodes topologically; remove nodes and weights that no graph output depends on."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    dependencies: dict[int, set[int]] = {}
    pending = [producer[output.name] for output in graph.output]
    while pending:
        i = pending.pop()
        if i not in dependencies:
            dependencies[i] = {producer[name] for name in graph.node[i].input if name in producer}
            pending += dependencies[i]
    _replace_items(graph.node, [graph.node[i] for i in graphlib.TopologicalSorter(dependencies).static_order()])
    used = {name for node in graph.node for name in node.input}
    _replace_items(graph.initializer, [weight for weight in graph.initializer if weight.name in used])


def _replace_items(field: Any, items: list[Any]) -> None:
    """Replace the content of a repeated protobuf field."""
    del field[:]
    field.extend(items)


def _name_dimensions(model: "ModelProto") -> None:
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        for dimension, name in zip(shape, DIMENSIONS[value.name], strict=True):
            if isinstance(name, str):
                dimension.dim_param = name
