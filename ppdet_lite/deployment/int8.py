"""int8 for deployment: an exported ONNX file is quantized by ONNX Runtime, and kept if it detects as well as before.

Quantization is static, in QDQ format: weights of 7 bits per output channel, activations of 8 bits. Seven bits give the
same results on every processor: without VNNI, the sum of two products of 8 bits may not fit into 16 bits. Only
convolutions and matrix products with constant weights are quantized. Layers that predict scores, boxes or offsets, and
the arithmetic on boxes and RoIs, remain float32.
"""

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx.helper import make_node, make_tensor_value_info, set_model_props
from onnxruntime.quantization import MinMaxCalibrater, QDQQuantizer, QuantType, TensorsData, quant_pre_process

from ppdet_lite.core.errors import RunFailed
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.loading.transforms import Preprocess, collate, image_sample
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.graph_inputs import graph_inputs
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE

METADATA = "ppdet_lite_int8"  # metadata key of the JSON that describes how a file was quantized
OPERATORS = ("Conv", "Gemm", "MatMul")
FLOAT_OUTPUT = ("Gemm", "MatMul")  # have kernels that return float32; that of Conv requires a quantized output
PREDICTORS = {"objectness", "classify", "regress", "offset"}  # parts of the names of layers that remain float32
LEFT_OUT = 0.1  # fraction of the layers that the second attempt leaves out
DAMAGE_IMAGES = 8  # number of images on which layers are compared
TIMED_RUNS = 5
WORTHWHILE = 0.95  # ratio of times above which int8 is reported to save no time

log = get_logger()


class Int8(NamedTuple):
    """How to quantize.

    images: the files to calibrate the ranges of activations on.
    measure: returns the quality of a detector, such as its AP on the validation data. quality: its name.
    max_loss: the largest loss of quality at which a quantized file is kept.
    """

    images: Sequence[Path]
    measure: Callable[[Detector], float]
    quality: str = "AP"
    max_loss: float = 0.01


class Node(NamedTuple):
    """A part of the graph to quantize. Layers that run on several levels, or in parts, have several."""

    layer: str
    names: tuple[str, ...]  # the node, and the ReLU that follows it
    tensors: tuple[str, ...]  # its input and the outputs of these


def quantize(file: Path, parameters: Mapping[str, str], int8: Int8) -> None:
    """Replace an ONNX file by a quantized one of the same detector.

    parameters: name of a weight in the file -> name of its layer in the model.

    If quality falls by more than `max_loss`, the most damaged layers remain float32 in a second attempt. Raises
    RunFailed if that is not enough; the file is then unchanged.
    """
    reference, quality = Detector.load(file), int8.quality
    before = int8.measure(reference)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / ONNX_FILE
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)  # folds norms into weights
        nodes = find_nodes(file, prepared, parameters)
        ranges = calibrate(prepared, nodes, graph_inputs_of(int8.images, reference.preprocess))
        samples = list(graph_inputs_of(int8.images[:DAMAGE_IMAGES], reference.preprocess))
        left_out: list[str] = []
        for attempt in range(2):
            used = [node for node in nodes if node.layer not in left_out]
            _write(prepared, quantized, used, ranges)
            detector = Detector.load(quantized)
            after = int8.measure(detector)
            _report((reference, detector), samples[0], f"{quality} {before:.4f} -> {after:.4f}")
            if before - after <= int8.max_loss:
                facts = {quality: {"float32": before, "int8": after}, "calibration_images": len(int8.images)}
                _describe(file, quantized, facts | {"left_out": left_out})
                quantized.replace(file)
                return
            if attempt == 0:
                damages = damage(prepared, nodes, ranges, samples)
                left_out = sorted(damages, key=damages.__getitem__)[-math.ceil(LEFT_OUT * len(damages)) :]
                log.info("the most damaged layers remain float32: %s", ", ".join(left_out))
    raise RunFailed(
        f"int8: {quality} falls from {before:.4f} to {after:.4f}, by more than {int8.max_loss:g}, also without the "
        "most damaged layers; calibrate on more images (--calibrate), accept it (--int8-loss), or export without --int8"
    )


def graph_inputs_of(images: Sequence[Path], preprocess: Preprocess) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of the graph for one image after another."""
    for path in images:
        batch = collate([image_sample(load_image(str(path)), preprocess, 0)], preprocess)
        arrays = [batch[key] for key in ("images", "image_sizes", "scales", "original_sizes")]
        yield graph_inputs(*arrays, preprocess.stride)


def find_nodes(file: Path, prepared: Path, parameters: Mapping[str, str]) -> list[Node]:
    """Return what to quantize in a prepared graph: the operators whose weights are those of one layer of the model."""
    layers: dict[str, str] = {}
    sources: dict[str, frozenset[str]] = {}  # tensor -> the layers whose weights it is computed from, "": the input
    for node in onnx.load(str(file)).graph.node:
        used = [sources.get(tensor, frozenset([""])) for tensor in node.input if tensor]
        for name in node.output:
            sources[name] = frozenset([parameters[name]] if name in parameters else []).union(*used)
        if node.op_type in OPERATORS and len(used[1]) == 1 and not PREDICTORS & set(min(used[1]).split(".")):
            layers[node.name] = min(used[1])
    graph = onnx.load(str(prepared)).graph
    weights = {weight.name for weight in graph.initializer}
    relus = {node.input[0]: node for node in graph.node if node.op_type == "Relu"}
    nodes = []
    for node in graph.node:
        name = node.name.split("/")[0]  # an added bias changes the rest
        if node.op_type in OPERATORS and node.input[1] in weights and layers.get(name):
            follows = node.output[0] in relus and node.op_type not in FLOAT_OUTPUT
            parts = [node, relus[node.output[0]]] if follows else [node]
            tensors = (node.input[0], *(part.output[0] for part in parts))
            nodes.append(Node(layers[name], tuple(part.name for part in parts), tensors))
    return nodes


def calibrate(prepared: Path, nodes: Sequence[Node], inputs: Iterator[dict[str, np.ndarray]]) -> TensorsData:
    """Return the range of values of the tensors at the nodes. Only the extremes of each image are kept in memory."""

    class Calibrater(MinMaxCalibrater):
        def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
            _, infos = super().select_tensors_to_calibrate(model)  # of operators: also of products without weights
            return {tensor for node in nodes for tensor in node.tensors}, infos

    calibrater = Calibrater(prepared, OPERATORS, str(prepared.with_name("extremes.onnx")))
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collect_data(SimpleNamespace(get_next=lambda: next(inputs, None)))
    return calibrater.compute_data()


def _write(prepared: Path, path: Path, nodes: Sequence[Node], ranges: TensorsData) -> None:
    """Write a prepared graph with some nodes quantized."""
    quantizer = QDQQuantizer(
        onnx.load(str(prepared)),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[name for node in nodes for name in node.names],
        nodes_to_exclude=[],
        op_types_to_quantize=[*OPERATORS, "Relu"],
        extra_options={"OpTypesToExcludeOutputQuantization": FLOAT_OUTPUT},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))


def damage(
    prepared: Path, nodes: Sequence[Node], ranges: TensorsData, inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Return the relative error, by layer, of the layer's output if only this layer is quantized.

    A copy of each layer is added to the float graph and quantized. Squared errors are summed within the graph, so that
    no outputs of layers have to be stored.
    """
    model, path, sums, copies, copied_ranges = onnx.load(str(prepared)), prepared.with_name("copies.onnx"), [], [], {}
    originals = {node.name: node for node in model.graph.node}
    for index, node in enumerate(nodes):
        renamed = {tensor: f"copy{index}:{tensor}" for tensor in node.tensors}
        copied_ranges |= {renamed[tensor]: ranges[tensor] for tensor in node.tensors}
        parts = [onnx.NodeProto.FromString(originals[name].SerializeToString()) for name in node.names]
        for part in parts:
            part.name = f"copy{index}:{part.name}"
            part.input[:] = [renamed.get(tensor, tensor) for tensor in part.input]
            part.output[:] = [renamed[tensor] for tensor in part.output]
        copies.append(node._replace(names=tuple(part.name for part in parts)))
        first, last, gap = node.tensors[0], node.tensors[-1], f"gap{index}"
        sums += [f"error{index}", f"signal{index}"]
        identity = make_node("Identity", [first], [renamed[first]])  # so that the original's input is not quantized
        model.graph.node.extend([identity, *parts, make_node("Sub", [renamed[last], last], [gap])])
        for tensor, name in zip((gap, last), sums[-2:]):
            model.graph.node.append(make_node("ReduceSumSquare", [tensor], [name], keepdims=0))
            model.graph.output.append(make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    onnx.save(model, str(path))
    _write(path, path, copies, TensorsData(ranges.calibration_method, copied_ranges))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    totals = np.sum([session.run(sums, dict(values)) for values in inputs], axis=0).reshape(-1, 2)
    layers = np.array([node.layer for node in nodes])
    by_layer = {layer: totals[layers == layer].sum(axis=0) for layer in dict.fromkeys(layers.tolist())}
    return {layer: float(np.sqrt(error / max(signal, 1e-30))) for layer, (error, signal) in by_layer.items()}


def _report(detectors: tuple[Detector, Detector], inputs: Mapping[str, np.ndarray], quality: str) -> None:
    """Log quality, size and time of the float and the quantized file. Their runs alternate."""
    seconds = np.empty((TIMED_RUNS + 1, 2))
    for run, column in itertools.product(range(len(seconds)), range(2)):
        start = time.perf_counter()
        detectors[column].network.run(inputs)
        seconds[run, column] = time.perf_counter() - start
    old, new = np.median(seconds[1:], axis=0)  # the first run allocates memory
    sizes = [Path(detector.source).stat().st_size / 1e6 for detector in detectors]
    times = f"{old:.3f} -> {new:.3f} s per image on this processor, {new / old:.2f} of the time"
    log.info("int8: %s, %.1f -> %.1f MB, %s", quality, *sizes, times)
    if new > WORTHWHILE * old:
        log.warning("int8 saves no time on this processor; where it does: docs/inference.md")


def _describe(original: Path, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the metadata of the original file, and how it was quantized, into a quantized file."""
    source, model = onnx.load(str(original)), onnx.load(str(path))
    made = {"weights": "int8, 7 bits, per channel", "activations": "uint8", "onnxruntime": onnxruntime.__version__}
    metadata = {entry.key: entry.value for entry in source.metadata_props} | {METADATA: json.dumps(made | dict(facts))}
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.opset_import[:]  # ONNX Runtime declares all domains that it knows
    model.opset_import.extend(source.opset_import)
    set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
