"""Run experiments: python -m tests.experiments NAME [NAME ...]

Each detector is trained once per seed, in output/experiments, and measured; the results go to docs/evidence/NAME.json
and its plots. What is recorded there is not trained again: to repeat it, delete the file and output/experiments/NAME. A
run that was interrupted is resumed.
"""

import argparse
from pathlib import Path

from ppdet_lite.data.synthetic.shapes import generate
from tests.experiments.definitions import EXPERIMENTS, SEEDS
from tests.experiments.results import recorded, summary
from tests.experiments.runs import runs_of, train_all


def main() -> None:
    """Generate the data, train what is not trained yet, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, with one thread each (2)")
    parser.add_argument("--results", action="store_true", help="train nothing: write the results of what is trained")
    args = parser.parse_args()
    for name in args.names:
        if variant := EXPERIMENTS[name].shapes:
            generate(f"dataset/experiments/{variant}", 600, 200, 0, 192, variant)
        elif not Path("dataset/bccd").is_dir():
            parser.error(f"{name} needs dataset/bccd; docs/bccd.md has the command that imports it")
    runs = [
        run
        for seed in SEEDS
        for name in args.names
        for run in runs_of(EXPERIMENTS[name], (seed,))
        if run.seed not in recorded(EXPERIMENTS[name]).get(run.variant.name, {})
    ]
    if not args.results:
        train_all(runs, args.jobs)
    for name in args.names:
        print(summary(EXPERIMENTS[name]))


if __name__ == "__main__":
    main()
