"""Write the table of all recipes: python tools/model_zoo.py [--output docs/model_zoo.md] (takes half an hour)"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/model_zoo.md", metavar="FILE", help="page to write")
    parser.add_argument("--iters", type=int, default=3, metavar="N", help="measurements per recipe (3)")
    args = parser.parse_args()
    with runtime.quiet_import():
        import paddle

        from ppdet_lite.benchmarks import model_zoo
        from ppdet_lite.storage.files import write_text
    log.configure()
    paddle.set_device("cpu")
    configs = ROOT / "configs"
    excluded = ("_base_", "quickstart", "bccd")  # partial configs, and recipes for other data than COCO
    recipes = [path for path in sorted(configs.glob("*/*.yml")) if path.parent.name not in excluded]
    table = []
    for row in model_zoo.measure_rows(recipes, configs, args.iters):
        log.get_logger().info("%s: %.1f M, %.0f GMACs, step %.2f s, detection %.2f s", row.recipe, *row[1:3], *row[5:])
        table.append(row)
    write_text(args.output, model_zoo.format_page(table))


if __name__ == "__main__":
    cli.run(main)
