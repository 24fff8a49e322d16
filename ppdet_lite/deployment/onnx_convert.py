"""Convert a saved Paddle graph with paddle2onnx: python -m ppdet_lite.deployment.onnx_convert FOLDER SCRATCH

This runs as a separate process, because paddle2onnx aborts its process at an operator that it does not support.

Operators that `onnx_operators` replaces are removed from the graph before the conversion: the result of each becomes a
graph input, its operands become graph outputs. Their names are written to SCRATCH/cuts.json. `onnx_export` then
connects the replacement to these inputs and outputs of the converted graph.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import paddle2onnx
from paddle import _pir_ops, pir
from paddle.base import core
from paddle2onnx import paddle2onnx_cpp2py_export

from ppdet_lite.deployment import onnx_operators
from ppdet_lite.deployment.predictor import GRAPH, WEIGHTS

CONVERTED, CUTS = "converted.onnx", "cuts.json"
FIRST_NEW_OUTPUT = 1000  # index of the first new output, after the graph's own ones
ALIASES = {  # operators that paddle2onnx supports but lists under another name
    *("add", "all", "any", "arange", "argmax", "assign_value_", "batch_norm_", "data", "divide", "expand", "fetch"),
    *("flatten", "floor_divide", "matmul", "max", "maximum", "mean", "min", "minimum", "multiply", "nonzero", "prod"),
    *("remainder", "subtract", "topk", "unsqueeze"),
}


class Cut(NamedTuple):
    """An operator that was removed from the graph."""

    operator: str
    attributes: dict[str, Any]
    inputs: list[str]  # names of the graph outputs for its operands; "" for an optional operand without value
    output: str  # name of the graph input for its result


def main() -> None:
    """Write the converted graph and the removed operators into the scratch folder."""
    folder, scratch = map(Path, sys.argv[1:])
    paddle.enable_static()
    program = paddle.static.Program()
    core.deserialize_pir_program(str(folder / GRAPH), program)
    cuts = cut_operators(program)
    report = {"cuts": [cut._asdict() for cut in cuts], "unsupported": unsupported_operators(program)}
    (scratch / CUTS).write_text(json.dumps(report), encoding="utf-8")
    core.serialize_pir_program(program, str(scratch / GRAPH), True, False, True)
    converted = paddle2onnx.export(
        str(scratch / GRAPH),
        str(folder / WEIGHTS),
        opset_version=onnx_operators.OPSET,
        auto_upgrade_opset=False,
        enable_onnx_checker=False,  # the graph is incomplete
        enable_optimize=False,
    )
    (scratch / CONVERTED).write_bytes(converted)


def cut_operators(program: paddle.static.Program) -> list[Cut]:
    """Remove the operators in `onnx_operators.REPLACED`: their operands become graph outputs, their results inputs."""
    block, cuts, position = program.global_block(), [], FIRST_NEW_OUTPUT
    with paddle.static.program_guard(program):
        for operator in list(block.ops):
            if (replaceable := _attributes_and_operands(operator)) is None:
                continue
            (attributes, operands), result, name, inputs = replaceable, operator.result(0), f"cut{len(cuts)}", []
            pir.set_insertion_point(operator)
            placeholder = _pir_ops.data(name, list(result.shape), result.dtype, core.Place())
            pir.reset_insertion_point_to_end()
            for k, value in enumerate(operands):
                inputs.append(f"{name}_{k}" if value.initialized() else "")
                if inputs[-1]:
                    _pir_ops.fetch(_pir_ops.assign(value), inputs[-1], position)  # a copy has its own name
                    position += 1
            cuts.append(Cut(operator.name(), attributes, inputs, name))
            result.replace_all_uses_with(placeholder)
            block.remove_op(operator)
    return cuts


def _attributes_and_operands(operator: pir.Operation) -> tuple[dict[str, Any], list[pir.Value]] | None:
    """Return the arguments of `onnx_operators.replacement` for an operator; None if it is not to be replaced."""
    name = operator.name()
    if name not in onnx_operators.REPLACED:
        return None
    attributes, operands = operator.attrs(), operator.operands_source()
    attributes = {key: value for key, value in attributes.items() if isinstance(value, bool | int | float | list)}
    if name == "pd_op.nms":
        return attributes, _boxes_and_groups(operands[0])
    if name not in ("pd_op.scale", "pd_op.clip"):
        return attributes, operands
    kind = str(operands[0].dtype).removeprefix("paddle.")  # paddle2onnx converts float32 correctly
    constants = [value.get_defining_op() for value in operands[1:]]
    if kind == "float32" or {constant.name() for constant in constants} != {"pd_op.full"}:
        return None
    return attributes | {"kind": kind, "constants": [constant.attrs()["value"] for constant in constants]}, operands[:1]


def _boxes_and_groups(shifted: pir.Value) -> list[pir.Value]:
    """Return the boxes and groups from which `grouped_nms` computed the shifted boxes that it passes to Paddle's NMS.

    It shifts each group to a separate region: boxes + groups * distance, in float64. ONNX's NonMaxSuppression takes
    float32, which would round the shifted boxes.
    """
    add = shifted.get_defining_op()
    boxes, shift = add.operands_source()
    multiply = shift.get_defining_op()
    groups = multiply.operands_source()[0]
    if (add.name(), multiply.name(), list(groups.shape)[1:]) != ("pd_op.add", "pd_op.multiply", [1]):
        raise ValueError("the graph has an NMS outside ops.nms.grouped_nms")
    return [boxes, groups]


def unsupported_operators(program: paddle.static.Program) -> list[str]:
    """Return the names of operators that paddle2onnx does not support."""
    supported = {*paddle2onnx_cpp2py_export.get_all_supported_operators_pir(), *ALIASES}
    names = {operator.name() for operator in program.global_block().ops}
    return sorted(name for name in names if name.startswith("pd_op.") and name.removeprefix("pd_op.") not in supported)


if __name__ == "__main__":
    main()
