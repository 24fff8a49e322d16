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
KEPT = ("builtin.parameter", "pd_op.data", "pd_op.feed", "pd_op.fetch")  # even if no operator uses their results
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


class _Replaceable(NamedTuple):
    """An operator to cut, or the loop around it, as arguments of `onnx_operators.replacement`."""

    operator: str
    attributes: dict[str, Any]
    operands: list[pir.Value]
    result: pir.Value


def cut_operators(program: paddle.static.Program) -> list[Cut]:
    """Remove the operators in `onnx_operators.REPLACED`: their operands become graph outputs, their results inputs.

    Operators whose results no other operator uses then are removed too: those that only fed a removed loop.
    """
    block, cuts, position = program.global_block(), [], FIRST_NEW_OUTPUT
    with paddle.static.program_guard(program):
        for operator in list(block.ops):
            if (replaceable := _replaceable(operator)) is None:
                continue
            result, name, inputs = replaceable.result, f"cut{len(cuts)}", []
            pir.set_insertion_point(operator)
            placeholder = _pir_ops.data(name, list(result.shape), result.dtype, core.Place())
            pir.reset_insertion_point_to_end()
            for k, value in enumerate(replaceable.operands):
                inputs.append(f"{name}_{k}" if value.initialized() else "")
                if inputs[-1]:
                    _pir_ops.fetch(_pir_ops.assign(value), inputs[-1], position)  # a copy has its own name
                    position += 1
            cuts.append(Cut(replaceable.operator, replaceable.attributes, inputs, name))
            result.replace_all_uses_with(placeholder)
            block.remove_op(operator)
    for operator in reversed(block.ops):
        results = operator.results()
        if results and operator.name() not in KEPT and all(result.use_empty() for result in results):
            block.remove_op(operator)
    return cuts


def _replaceable(operator: pir.Operation) -> _Replaceable | None:
    """Return what replaces an operator of the graph; None if it is to be converted by paddle2onnx."""
    name = operator.name()
    if name == "pd_op.while":
        return _nms_in_loop(operator)
    if name not in onnx_operators.REPLACED:
        return None
    attributes, operands = _plain_attributes(operator), operator.operands_source()
    if name in ("pd_op.scale", "pd_op.clip"):
        kind = str(operands[0].dtype).removeprefix("paddle.")  # paddle2onnx converts float32 correctly
        constants = [value.get_defining_op() for value in operands[1:]]
        if kind == "float32" or {constant.name() for constant in constants} != {"pd_op.full"}:
            return None
        attributes |= {"kind": kind, "constants": [constant.attrs()["value"] for constant in constants]}
        operands = operands[:1]
    return _Replaceable(name, attributes, operands, operator.result(0))


def _plain_attributes(operator: pir.Operation) -> dict[str, Any]:
    return {key: value for key, value in operator.attrs().items() if isinstance(value, bool | int | float | list)}


def _nms_in_loop(loop: pir.Operation) -> _Replaceable | None:
    """Return the NMS of a loop that `ops.nms` traced, as one NMS with groups; None for another loop.

    The loop passes slices of shifted boxes to Paddle's NMS and concatenates the results. Its boxes are shifted by
    group: boxes + groups * distance, in float64. ONNX's NonMaxSuppression takes float32, which would round them, but
    has groups, which the loop is not needed for.
    """
    nms = next((inner for block in loop.blocks() for inner in block.ops if inner.name() == "pd_op.nms"), None)
    if nms is None:
        return None
    part = nms.operands_source()[0].get_defining_op()
    add = part.operands_source()[0].get_defining_op()
    boxes, shift = add.operands_source()
    multiply = shift.get_defining_op()
    groups = multiply.operands_source()[0]
    used = [result for result in loop.results() if not result.use_empty()]
    names = part.name(), add.name(), multiply.name(), list(groups.shape)[1:], len(used)
    if names != ("pd_op.slice", "pd_op.add", "pd_op.multiply", [1], 1):
        raise ValueError("the graph has an NMS outside ops.nms.grouped_nms")
    return _Replaceable("pd_op.nms", _plain_attributes(nms), [boxes, groups], used[0])


def unsupported_operators(program: paddle.static.Program) -> list[str]:
    """Return the names of operators that paddle2onnx does not support."""
    supported = {*paddle2onnx_cpp2py_export.get_all_supported_operators_pir(), *ALIASES}
    names = {operator.name() for operator in program.global_block().ops}
    return sorted(name for name in names if name.startswith("pd_op.") and name.removeprefix("pd_op.") not in supported)


if __name__ == "__main__":
    main()
