"""The command line: `ppdet-lite COMMAND ...`, or `python -m ppdet_lite COMMAND ...`."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules

from ppdet_lite import __version__, commands
from ppdet_lite.core import cli

PROGRAM = "ppdet-lite"


def main() -> None:
    """Run the command that the first argument names; the others are its arguments."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        run_command(arguments[0], arguments[1:])
    elif arguments in (["--version"], ["-V"]):
        print(f"{PROGRAM} {__version__}")
    else:
        print(_help())
        sys.exit(0 if arguments in ([], ["-h"], ["--help"]) else cli.USER_ERROR)


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run one command, such as "train", with its arguments, and exit as `cli.run` describes."""
    if name not in command_names():
        nearest = get_close_matches(name, command_names(), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; `{PROGRAM} --help` lists the commands"
        print(f"error: {name}: unknown command{hint}", file=sys.stderr)
        sys.exit(cli.USER_ERROR)
    sys.argv = [f"{PROGRAM} {name}", *arguments]  # argparse shows the first in usage and errors
    cli.run(_module(name).main)


def command_names() -> list[str]:
    """Return the names of all commands, such as "check-data"."""
    return [module.name.replace("_", "-") for module in iter_modules(commands.__path__)]


def _module(name: str):
    return import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def _help() -> str:
    lines = []
    for name in command_names():
        purpose = (_module(name).__doc__ or "").partition("\n")[0].partition(f": {PROGRAM}")[0]
        lines.append(f"  {name:<18} {purpose}")
    usage = f"usage: {PROGRAM} COMMAND [arguments]\n\nFaster R-CNN on PaddlePaddle, exact and small. Commands:\n\n"
    return usage + "\n".join(lines) + f"\n\n`{PROGRAM} COMMAND --help` describes the arguments of a command."


if __name__ == "__main__":
    main()
