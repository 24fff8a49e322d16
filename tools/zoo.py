"""List and download published weights, from a checkout: the same as `ppdet-lite zoo`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.__main__ import run_command

if __name__ == "__main__":
    run_command("zoo", sys.argv[1:])
