"""What the command-line tools share: the -c and -o arguments, and errors as exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ppdet_lite.core import log
from ppdet_lite.core.errors import RunFailed, Stopped, UserError

RUN_FAILED = 1
USER_CAN_MEND = 2
INTERRUPTED = 130
UNREAD = 141  # as a shell has it for SIGPIPE
PACKAGES = {  # what is imported -> the distributions that may bring it
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "yaml": ("PyYAML",),
    **{name: (name,) for name in ("numpy", "pydantic", "safetensors", "pycocotools", "msgspec", "matplotlib")},
    **{name: (name,) for name in ("jinja2", "simplejpeg", "tqdm", "visualdl")},
}


def config_parser(description: str, required: bool = True) -> argparse.ArgumentParser:
    """A parser with -c/--config, -o/--override and --print-config; a tool adds its own arguments.

    required: whether it can do nothing without a config.
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
        help="set a value of the config, for example -o model.backbone.depth=101; many at once, and repeatable",
    )
    parser.add_argument("--print-config", action="store_true", help="print the config with all origins, and stop")
    return parser


def overrides(args: argparse.Namespace) -> list[str]:
    """All -o arguments in the order given."""
    return [text for group in args.override for text in group]


def stop_if_printed(args: argparse.Namespace, config: Any) -> None:
    """With --print-config: print a checked config, each value with its origin, and end; None goes on."""
    if config is not None and args.print_config:
        print(config.dump(origins=True), end="")
        sys.exit(0)


def run(main: Callable[[], None]) -> None:
    """Run a tool: UserError becomes one line and exit code 2, RunFailed code 1, Ctrl-C code 130.

    A required package that is not installed is the user's to mend too. Output that nobody reads ends it with code 141.
    Other errors are bugs and keep their traceback.
    """
    try:
        main()
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_CAN_MEND if isinstance(error, UserError) else RUN_FAILED)
    except Stopped as stopped:  # the log has told
        sys.exit(stopped.code)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        print(
            f"error: {sys.executable} has no {error.name}: pip install -r requirements.txt, "
            "or activate what make has set up, . .venv/bin/activate",
            file=sys.stderr,
        )
        sys.exit(USER_CAN_MEND)
    except BrokenPipeError:  # who read what is printed has gone, as `| head` does
        log.drop_output()
        sys.exit(UNREAD)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
