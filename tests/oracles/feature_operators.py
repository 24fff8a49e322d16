"""Where the time of backbone, neck and RPN convolutions goes in a training step, by operator.

    python -m tests.oracles.feature_operators r18_bn|r18_gn|r50_frozen|r50_mdconv

Milliseconds of a forward and a backward pass, from paddle.profiler: every kernel's, and how often it ran. What runs in
no kernel of Paddle's is only in the two totals.
"""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import ppdet_lite  # noqa: F401  sets up the process before paddle is imported
from ppdet_lite.assembly.setup import build_model, load_config

import paddle  # isort: skip
import paddle.profiler as profiler  # isort: skip

R18, R50 = "configs/quickstart/shapes_r18_fpn.yml", "configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
CASES = {  # config, overrides, images
    "r18_bn": (R18, [], 4),
    "r18_gn": (R18, ["model.backbone.norm=gn", "model.neck.norm=gn"], 4),
    "r50_frozen": (R50, [], 1),
    "r50_mdconv": ("configs/dcn/faster_rcnn_dcn_r50_fpn_1x_coco.yml", [], 1),
}
STEPS = 3
SHOWN = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    path, overrides, batch = CASES[parser.parse_args().case]
    model = build_model(load_config(path, overrides), [f"c{i}" for i in range(8)])
    model.train()
    images = paddle.randn([batch, 3, 320, 448])
    marks: list[tuple[float, float]] = []

    def step() -> None:
        began = time.perf_counter()
        features = model.neck(model.backbone(images))
        outputs = [*features, *(tensor for answer in model.rpn(features) for tensor in answer)]
        between = time.perf_counter()
        paddle.autograd.backward(outputs, [paddle.ones_like(output) for output in outputs])
        marks.append((between - began, time.perf_counter() - between))
        model.clear_gradients()

    for _ in range(2 + STEPS):
        step()
    forward, backward = np.median(marks[2:], axis=0) * 1e3
    print(f"forward {forward:.0f} ms, backward {backward:.0f} ms")
    recorder = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    recorder.start()
    for _ in range(STEPS):
        step()
    recorder.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorder.export(str(trace), format="json")
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("ph") == "X"]
    _show(events)


def _show(events: list[dict]) -> None:
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"].startswith("backward")]
    spent, runs = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("cat") == "DygraphKernelLaunch":
            in_backward = any(begin <= event["ts"] < end for begin, end in spans)
            name = event["name"].split(" kernel")[0], "backward" if in_backward else "forward"
            spent[name] += event["dur"] / 1e3 / STEPS
            runs[name] += 1
    for name, milliseconds in spent.most_common(SHOWN):
        print(f"{milliseconds:7.1f} ms  {name[1]:<8}  {name[0]} ({runs[name] // STEPS})")


if __name__ == "__main__":
    main()
