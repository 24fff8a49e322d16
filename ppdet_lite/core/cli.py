"""Shared by the command-line tools: the -c and -o arguments, and the conversion of errors to exit codes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ppdet_lite.core import log
from ppdet_lite.core.errors import RunFailed, Stopped, UserError

RUN_FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # a shell's exit code for SIGPIPE: 128 + 13
PADDLE = "paddlepaddle==3.3.1"  # the tested version, as in pyproject.toml
PACKAGES = {  # imported module -> the distributions that may provide it
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "yaml": ("PyYAML",),
    **{name: (name,) for name in ("numpy", "pydantic", "safetensors", "pycocotools", "msgspec", "matplotlib")},
    **{name: (name,) for name in ("jinja2", "simplejpeg", "tqdm", "visualdl")},
}
SYSTEM_PACKAGES = {"libgomp.so.1": "libgomp1"}  # of Paddle's wheels; the library's package in Debian


def config_parser(description: str, required: bool = True) -> argparse.ArgumentParser:
    """Return a parser with -c/--config, -o/--override and --print-config, to which a tool adds its own arguments.

    required: whether the tool requires a config.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", required=required, metavar="FILE", help="the config, a YAML file")
    parser.add_argument(
        "-o",
        "--override",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a value of the config, for example -o model.backbone.depth=101; takes several, and may be repeated",
    )
    parser.add_argument("--print-config", action="store_true", help="print all values with their origins, and exit")
    return parser


def add_runtime_argument(parser: argparse.ArgumentParser) -> None:
    """Add --runtime, which selects what runs an .onnx file."""
    choices = ["auto", "onnxruntime", "openvino"]
    parser.add_argument("--runtime", choices=choices, default="auto", help="what runs an .onnx file (onnxruntime)")


def overrides(args: argparse.Namespace) -> list[str]:
    """Return all -o arguments in the order given."""
    return [text for group in args.override for text in group]


def require_effect(overrides: Sequence[str], keys: Sequence[str], reason: str, have: bool = True) -> None:
    """Raise UserError for an override without effect. keys: those that have one or, with have=False, that have none."""
    for text in overrides:
        key = text.partition("=")[0]
        if any(key == each or key.startswith(f"{each}.") for each in keys) != have:
            raise UserError(f"-o {text} has no effect: {reason}")


def separate_overrides(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which -o takes only KEY=VALUE; argparse would give it the paths after it too."""
    separated: list[str] = []
    follows_override = False
    for argument in arguments:
        if follows_override and "=" in argument and not argument.startswith("-"):
            if separated[-1] in ("-o", "--override"):
                separated.pop()
            separated.append(f"--override={argument}")
        else:
            follows_override = argument in ("-o", "--override")
            separated.append(argument)
    return separated


def handle_print_config(args: argparse.Namespace, config: Any) -> None:
    """With --print-config, print the checked config with the origin of each value and exit; do nothing for None."""
    if config is not None and args.print_config:
        print(config.dump(origins=True), end="")
        sys.exit(0)


def run(main: Callable[[], None]) -> None:
    """Run a tool. Print UserError as one line with exit code 2, RunFailed as one line with code 1.

    A required package or system library that is not installed also gives one line and code 2. Ctrl-C gives code 130,
    and a standard output closed by its reader code 141. Any other error is a bug and keeps its traceback.
    """
    try:
        main()
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR if isinstance(error, UserError) else RUN_FAILED)
    except Stopped as stopped:  # its message is in the log already
        sys.exit(stopped.code)
    except ImportError as error:
        if (missing := _missing(error)) is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        log.discard_stdout()
        sys.exit(BROKEN_PIPE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _missing(error: ImportError) -> str | None:
    """Return which package or system library an import lacks, and how to install it; None for any other error."""
    if library := re.match(r"(\S+\.so\S*): cannot open shared object file", str(error)):
        name = library[1]
        package = f" (Debian, Ubuntu: apt-get install {SYSTEM_PACKAGES[name]})" if name in SYSTEM_PACKAGES else ""
        return f"the system library {name} is missing; install it{package}"
    if not isinstance(error, ModuleNotFoundError) or error.name not in PACKAGES:
        return None
    package = PADDLE if error.name == "paddle" else PACKAGES[error.name][0]
    activate = "or activate the environment with ppdet-lite, such as that of make: . .venv/bin/activate"
    return f"{sys.executable} has no {error.name}: pip install {package}, {activate}"
