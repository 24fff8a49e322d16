"""Import the package, train and evaluate as on Windows, simulated: run by test_without_posix.py in its own process.

POSIX modules and functions are missing, ctypes.CDLL(None) fails, sys.platform and platform.system() name Windows, and
an open file, or a folder with one, can be neither removed nor renamed. Paths remain POSIX paths, and other packages are
imported before the simulation begins.
"""

import ctypes
import importlib
import importlib.util
import os
import pkgutil
import platform
import signal
import sys
from pathlib import Path
from typing import Any

OTHERS = "paddle cv2 matplotlib.pyplot PIL.Image pycocotools.mask faster_coco_eval visualdl simplejpeg safetensors tqdm"
OTHERS += " multiprocessing.connection multiprocessing.shared_memory concurrent.futures.process asyncio tempfile"
OTHERS += " onnxruntime.quantization"
OPTIONAL = {"ppdet_lite.deployment.onnx_convert": "paddle2onnx"}  # has no wheels for Python 3.13
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
OS_NAMES = "sched_getaffinity fork forkpty killpg getpgid setsid getuid geteuid getgid getppid statvfs uname getloadavg"
OS_NAMES += " mkfifo chown sysconf nice wait waitpid pread pwrite posix_fadvise"
SIGNALS = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT")


def refuse_open_files(name: str) -> None:
    """Let os.<name> fail on a path of an open file of this process, as on Windows."""
    real = getattr(os, name)

    def refusing(path: Any, *args: Any, **options: Any) -> Any:
        place = os.path.abspath(path) if isinstance(path, (str, Path)) else ""
        for entry in os.listdir("/proc/self/fd") if place and options.get("dir_fd") is None else []:
            target = os.path.realpath(f"/proc/self/fd/{entry}")
            if target == place or target.startswith(place + os.sep):
                raise PermissionError(13, "The process cannot access the file because it is being used", place)
        return real(path, *args, **options)

    setattr(os, name, refusing)


def pretend() -> None:
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]
    for owner, names in ((os, OS_NAMES.split()), (signal, SIGNALS)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    real = ctypes.CDLL

    class Library(real):  # type: ignore[misc, valid-type]
        def __init__(self, name: str | None, *args: Any, **options: Any) -> None:
            if name is None:
                raise TypeError("LoadLibrary() argument 1 must be str, not None")
            super().__init__(name, *args, **options)

    ctypes.CDLL = Library  # type: ignore[misc]
    for name in ("unlink", "remove", "rename", "replace"):
        refuse_open_files(name)
    sys.platform = "win32"
    platform.system = lambda: "Windows"
    platform.libc_ver = lambda *_: ("", "")


def command(*arguments: str) -> None:
    """Run `ppdet-lite` in this process."""
    from ppdet_lite import __main__ as command_line

    sys.argv = ["ppdet-lite", *arguments]
    try:
        command_line.main()
    except SystemExit as ended:
        if ended.code:
            raise


def main() -> None:
    for name in OTHERS.split():
        importlib.import_module(name)
    pretend()
    import ppdet_lite

    for module in pkgutil.walk_packages(ppdet_lite.__path__, "ppdet_lite."):
        installed = importlib.util.find_spec(OPTIONAL.get(module.name, "ppdet_lite"))
        if installed and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    command("make-shapes", "--output", "dataset/shapes", "--train", "2", "--val", "1", "--size", "96")
    small = ["train.length=1 iterations", "data.loader.batch_size=1", "data.preprocess.short_side=64"]
    command("train", "-c", "quickstart/shapes_r18_fpn", "-o", "output=output", *small, "--eval")
    assert not list(Path("output").rglob(".lock"))
    print("imported, trained and evaluated")


if __name__ == "__main__":
    main()
