"""Counting the operators that Paddle runs eagerly, each of which launches at least one kernel on a GPU."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from paddle import profiler


def count_operators(work: Callable[[], object]) -> Counter[str]:
    """Call `work` and return how often each operator ran in it, with the operators of its backward passes."""
    recorder = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    recorder.start()
    try:
        work()
    finally:
        recorder.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorder.export(str(trace), format="json")
        events = json.loads(trace.read_text())["traceEvents"]
    launches = [event["name"] for event in events if event.get("cat") == "DygraphKernelLaunch"]
    return Counter(name.split(" kernel launch")[0] for name in launches)
