"""A report of the environment for bug reports. Paddle is imported late: most of the report does not need it."""

import os
import platform
import time
from importlib import metadata

from ppdet_lite import __version__
from ppdet_lite.core import runtime
from ppdet_lite.core.cli import PACKAGES

VARIABLES = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "FLAGS_", "CUDA_VISIBLE_DEVICES", "PPDET_LITE_")


def print_report() -> None:
    """Print the report. Missing packages are listed in it."""
    ours = {setting.name for setting in runtime.applied_settings() if setting.value is not None}
    users = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(VARIABLES) and name not in ours]
    print(f"ppdet_lite {__version__}, Python {platform.python_version()}, {platform.platform()}")
    installed = {package.metadata["Name"].lower(): package.version for package in metadata.distributions()}
    for module, names in PACKAGES.items():
        versions = [f"{name} {installed[name.lower()]}" for name in names if name.lower() in installed]
        print(f"  {module}: {', '.join(versions) or f'MISSING: pip install {names[0]}'}")
    print(f"cores: {runtime.usable_cores()} usable of {os.cpu_count()}, {runtime.cpu_info().get('model name', '?')}")
    print("set by ppdet_lite:", *(f"  {setting}" for setting in runtime.applied_settings() or ["nothing"]), sep="\n")
    print(f"set by the user: {', '.join(sorted(users)) or 'nothing'}")
    try:
        with runtime.quiet_import():
            import paddle
    except (ImportError, OSError) as error:
        print(f"paddle cannot be imported: {error}")
        return
    gpus = range(paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0)
    print("devices:", ", ".join(["cpu", *(paddle.device.cuda.get_device_name(i) for i in gpus)]))
    from ppdet_lite.ops import dispatch

    print(*dispatch.describe_libraries(), sep="\n")
    matrix = paddle.rand([1024, 1024])
    paddle.matmul(matrix, matrix).numpy()  # warm-up
    products, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 0.5:
        paddle.matmul(matrix, matrix).numpy()
        products += 1
    print(f"float32 matmul 1024^3 on {paddle.get_device()}: {2 * 1024**3 * products / seconds / 1e9:.0f} GFLOP/s")
