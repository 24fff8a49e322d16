"""A saved Paddle graph through paddle2onnx: python -m ppdet_lite.deployment.onnx_convert FOLDER SCRATCH

It is a process of its own, since paddle2onnx ends the process it works in when it meets what it cannot convert.

What `onnx_parts` makes better is cut out of the graph first: the operator's result becomes an input, what it reads
becomes outputs. `onnx_export` closes the converted graph again at these places.
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
AFTER_OTHERS = 1000  # where new outputs stand: behind the graph's own
ALIASES = {  # operators that paddle2onnx takes, though its list has them by another name
    *("add", "all", "any", "arange", "argmax", "assign_value_", "batch_norm_", "data", "divide", "expand", "fetch"),
    *("flatten", "floor_divide", "matmul", "max", "maximum", "mean", "min", "minimum", "multiply", "nonzero", "prod"),
    *("remainder", "subtract", "topk", "unsqueeze"),
}


class Cut(NamedTuple):
    """An operator that was cut out."""

    operator: str
    attributes: dict[str, Any]
    inputs: list[str]  # "" for one that it does without
    output: str


def main() -> None:
    """Write the converted graph, and what was cut out of it, into the scratch folder."""
    folder, scratch = map(Path, sys.argv[1:])
    paddle.enable_static()
    program = paddle.static.Program()
    core.deserialize_pir_program(str(folder / GRAPH), program)
    cuts = cut_out(program)
    told = {"cuts": [cut._asdict() for cut in cuts], "unknown": unknown(program)}
    (scratch / CUTS).write_text(json.dumps(told), encoding="utf-8")
    core.serialize_pir_program(program, str(scratch / GRAPH), True, False, True)
    converted = paddle2onnx.export(
        str(scratch / GRAPH),
        str(folder / WEIGHTS),
        opset_version=onnx_operators.OPSET,
        auto_upgrade_opset=False,
        enable_onnx_checker=False,  # the graph is not whole yet
        enable_optimize=False,
    )
    (scratch / CONVERTED).write_bytes(converted)


def cut_out(program: paddle.static.Program) -> list[Cut]:
    """Take the operators of `onnx_parts` out of a program: their operands become outputs, their results inputs."""
    block, cuts, column = program.global_block(), [], AFTER_OTHERS
    with paddle.static.program_guard(program):
        for operator in list(block.ops):
            if (parts := _parts(operator)) is None:
                continue
            (attributes, operands), result, name, inputs = parts, operator.result(0), f"cut{len(cuts)}", []
            pir.set_insertion_point(operator)
            stand_in = _pir_ops.data(name, list(result.shape), result.dtype, core.Place())
            pir.reset_insertion_point_to_end()
            for k, value in enumerate(operands):
                inputs.append(f"{name}_{k}" if value.initialized() else "")
                if inputs[-1]:
                    _pir_ops.fetch(_pir_ops.assign(value), inputs[-1], column)  # a name for each use of a value
                    column += 1
            cuts.append(Cut(operator.name(), attributes, inputs, name))
            result.replace_all_uses_with(stand_in)
            block.remove_op(operator)
    return cuts


def _parts(operator: pir.Operation) -> tuple[dict[str, Any], list[pir.Value]] | None:
    """The attributes and operands of an operator that is to be cut out; None of one that is not."""
    name = operator.name()
    if name not in onnx_operators.REPLACED:
        return None
    attributes, operands = operator.attrs(), operator.operands_source()
    attributes = {key: value for key, value in attributes.items() if isinstance(value, bool | int | float | list)}
    if name == "pd_op.nms":
        return attributes, _boxes_and_groups(operands[0])
    if name not in ("pd_op.scale", "pd_op.clip"):
        return attributes, operands
    kind, constants = (
        str(operands[0].dtype).removeprefix("paddle."),
        [value.get_defining_op() for value in operands[1:]],
    )
    if kind == "float32" or {constant.name() for constant in constants} != {"pd_op.full"}:
        return None
    return attributes | {"kind": kind, "constants": [constant.attrs()["value"] for constant in constants]}, operands[:1]


def _boxes_and_groups(moved: pir.Value) -> list[pir.Value]:
    """Boxes and their groups, apart, out of what `grouped_nms` made of them.

    There a group's boxes are moved to a place of their own: boxes + groups * distance, in float64. ONNX's operator
    takes float32, which would round them.
    """
    add = moved.get_defining_op()
    boxes, by = add.operands_source()
    multiply = by.get_defining_op()
    groups = multiply.operands_source()[0]
    if (add.name(), multiply.name(), list(groups.shape)[1:]) != ("pd_op.add", "pd_op.multiply", [1]):
        raise ValueError("an NMS that is not ops.nms.grouped_nms's")
    return [boxes, groups]


def unknown(program: paddle.static.Program) -> list[str]:
    """Names of operators that paddle2onnx does not know."""
    known = {*paddle2onnx_cpp2py_export.get_all_supported_operators_pir(), *ALIASES}
    names = {operator.name() for operator in program.global_block().ops}
    return sorted(name for name in names if name.startswith("pd_op.") and name.removeprefix("pd_op.") not in known)


if __name__ == "__main__":
    main()
