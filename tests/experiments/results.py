"""Results of an experiment over its seeds: a JSON file, a plot and a Markdown table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.reporting.html import svg
from ppdet_lite.storage.files import output_file, write_text
from tests.experiments.definitions import AGREEING, BATCHES, NORMS_AT_4, Experiment
from tests.experiments.measures import measured
from tests.experiments.runs import Run, runs_of

DOCS = Path("docs/evidence")
SIZES = ("small", "medium", "large")
Results = dict[str, dict[int, dict[str, Any]]]  # variant -> seed -> values


def recorded(experiment: Experiment) -> Results:
    """Return the results in docs/evidence."""
    path = DOCS / f"{experiment.name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: {int(seed): row for seed, row in seeds.items()} for name, seeds in content.items()}


def write_results(experiment: Experiment) -> Results:
    """Add the runs that are done here to docs/evidence/NAME.json, draw its plots again, and return all results."""
    known = recorded(experiment)
    results: Results = {}
    for run in sorted(runs_of(experiment), key=lambda run: experiment.variants.index(run.variant)):
        if run.is_done:
            row = _rounded(_values(run))
        elif (row := known.get(run.variant.name, {}).get(run.seed)) is None:
            continue
        results.setdefault(run.variant.name, {})[run.seed] = row
    lines = [
        f' "{variant}": {{\n' + ",\n".join(f'  "{seed}": {json.dumps(row)}' for seed, row in seeds.items()) + "\n }"
        for variant, seeds in results.items()
    ]
    write_text(DOCS / f"{experiment.name}.json", "{\n" + ",\n".join(lines) + "\n}\n")
    for name, (draw, columns) in PLOTS[experiment.name].items():
        with output_file(DOCS / f"{name}.svg") as file:
            file.write(svg(lambda *axes, draw=draw: draw(results, *axes), 3.8 * columns + 0.6, 3.0, columns))
    return results


def summary(experiment: Experiment) -> str:
    """Write the results of an experiment; return them as a Markdown table, mean ± standard deviation over the seeds."""
    results = write_results(experiment)
    scalars = {key: None for seeds in results.values() for row in seeds.values() for key in _scalars(row)}
    lines = [f"| {experiment.name} | " + " | ".join(scalars) + " | seeds |", "|---" * (len(scalars) + 2) + "|"]
    for variant, seeds in results.items():
        rows = [_scalars(row) for row in seeds.values()]
        cells = [_mean_and_deviation([row[key] for row in rows if key in row]) for key in scalars]
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {len(seeds)} |")
    return "\n".join(lines)


def _scalars(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return all numbers of nested values, except those of offsets, by their path."""
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            numbers |= _scalars(value, f"{prefix}{key} ") if key != "offsets" else {}
        else:
            numbers[prefix + key] = value
    return numbers


def _values(run: Run) -> dict[str, Any]:
    values = {**measured(run), **json.loads((run.folder / "done.json").read_text(encoding="utf-8"))}
    if "offsets" in values:
        offsets = values["offsets"]
        parts = {**offsets["layers"], "stacked": offsets["stacked"]}
        values["offsets"] = {name: _means(part) for name, part in parts.items()}
    return values


def _means(part: dict[str, Any]) -> dict[str, list[float]]:
    """Return the means and deviations by size of one layer's part of an `offset_table`."""
    rows = {kind: sizes for kind, sizes in part.items() if kind != "layers"}
    means = {kind: [moments["mean"] for moments in sizes.values()] for kind, sizes in rows.items()}
    if "effective_dilation" in rows:
        means["deviation"] = [moments["std"] for moments in rows["effective_dilation"].values()]
    return means


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def _mean_and_deviation(numbers: Sequence[float]) -> str:
    """Return the mean and, of more than one number, the standard deviation of the sample; nothing of none."""
    if not numbers:
        return ""
    digits = 3 if abs(numbers[0]) < 10 else 0
    text = f"{np.mean(numbers):.{digits}f}"
    return text if len(numbers) < 2 else f"{text} ± {np.std(numbers, ddof=1):.{digits}f}"


def _column(seeds: dict[int, dict[str, Any]], *keys: str) -> np.ndarray:
    rows = list(seeds.values())
    for key in keys:
        rows = [row[key] for row in rows]
    return np.array(rows, float)


def _dots(axes: Any, x: float, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Draw the values of the seeds as dots, and their mean as a bar behind them."""
    axes.bar(x, values.mean(), 0.36, color=color, alpha=0.35, label=label)
    axes.plot(np.full(len(values), x), values, "o", color=color, markersize=3.5)


def _plot_batch(results: Results, axes: Any) -> None:
    for norm, color in (("bn", "C0"), ("gn", "C1")):
        found = [batch for batch in BATCHES if f"{norm}_{batch}" in results]
        values = [_column(results[f"{norm}_{batch}"], "AP") for batch in found]
        axes.errorbar(found, [v.mean() for v in values], [v.std() for v in values], label=norm, color=color, capsize=2)
    for norm, color in zip(NORMS_AT_4, ("C2", "C3", "C4"), strict=True):
        if f"{norm}_4" in results:
            values = _column(results[f"{norm}_4"], "AP")
            axes.errorbar([4], values.mean(), values.std(), fmt="o", label=norm, color=color, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.set(xlabel="images per step", ylabel="AP")
    axes.legend(frameon=False)


def _plot_metrics(results: Results, *axes: Any) -> None:
    for part, key in zip(axes, ("AP", "AP75"), strict=False):
        for x, seeds in enumerate(results.values()):
            _dots(part, x, _column(seeds, key), "C0")
        _variants(part, results, key)


def _plot_context(results: Results, ap: Any, accuracy: Any) -> None:
    for axes, key in ((ap, "AP"), (accuracy, "accuracy")):
        for x, seeds in enumerate(results.values()):
            label = ("discs agree", "discs at random") if x == 0 else (None, None)
            _dots(axes, x - 0.2, _column(seeds, AGREEING, key), "C2", label[0])
            _dots(axes, x + 0.2, _column(seeds, key), "C0", label[1])
        _variants(axes, results, key if key == "AP" else "right class, of objects found")
    ap.legend(frameon=False, fontsize=7, loc="lower left")


def _plot_sampling(results: Results, dilation: Any, outside: Any) -> None:
    """Plot the means over layers and seeds; dashes show a convolution without offsets.

    The dilation of `mdconv_fast` is 7 cells, beside which the others could not be told apart: it is left out.
    """
    deformable = {
        name: seeds
        for name, seeds in results.items()
        if name != "mdconv_fast" and all("offsets" in row for row in seeds.values())
    }
    for x, seeds in enumerate(deformable.values()):
        layers = [[part for name, part in row["offsets"].items() if name != "stacked"] for row in seeds.values()]
        means = np.array([np.mean([part["effective_dilation"] for part in row], axis=0) for row in layers])
        shares = np.array([row["offsets"]["stacked"]["outside_box"] for row in seeds.values()])
        regular = np.mean([row["offsets"]["stacked"]["outside_box_without_offsets"] for row in seeds.values()], axis=0)
        for column, size in enumerate((*SIZES, "background")):
            place, label = x + 0.2 * (column - 1.5), size if x == 0 else None
            dilation.bar(place, means[:, column].mean(), 0.18, label=label, color=f"C{column}", alpha=0.5)
            dilation.plot(np.full(len(means), place), means[:, column], "o", color=f"C{column}", markersize=3)
        for column in range(len(SIZES)):
            place = x + 0.2 * (column - 1)
            outside.bar(place, shares[:, column].mean(), 0.18, color=f"C{column}", alpha=0.5)
            outside.plot(np.full(len(shares), place), shares[:, column], "o", color=f"C{column}", markersize=3)
            outside.plot([place - 0.1, place + 0.1], [regular[column]] * 2, color="black", linestyle=":")
    _variants(dilation, deformable, "effective dilation (cells)")
    _variants(outside, deformable, "samples outside of the box")
    dilation.margins(y=0.3)
    dilation.set_ylim(bottom=0)
    if deformable:
        dilation.legend(frameon=False, fontsize=7, ncols=2)


def _variants(axes: Any, results: Results, label: str) -> None:
    axes.set_xticks(range(len(results)), results, rotation=20, ha="right", fontsize=7)
    axes.set_ylabel(label)


PLOTS: dict[str, dict[str, tuple[Callable[..., None], int]]] = {
    "batch": {"batch": (_plot_batch, 1)},
    "cells": {"cells": (_plot_metrics, 2), "cells_sampling": (_plot_sampling, 2)},
    "deformed": {"deformed": (_plot_metrics, 1), "deformed_sampling": (_plot_sampling, 2)},
    "context": {"context": (_plot_context, 2), "context_sampling": (_plot_sampling, 2)},
}
