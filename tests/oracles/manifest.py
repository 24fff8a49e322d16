"""Names and shapes of what other frameworks' checkpoints hold (manifests/README.md). Imports nothing but Python."""

import itertools
import json
import math
import re
from pathlib import Path

FOLDER = Path(__file__).with_name("manifests")
Shapes = dict[str, tuple[int, ...]]


def models(peer: str) -> list[str]:
    """The models of `torchvision`, `mmdetection` or `detectron2` that a manifest lists."""
    return list(_load(peer)["models"])


def read(peer: str, model: str) -> Shapes:
    """Every tensor of a checkpoint's state: name -> shape, () for a scalar."""
    out: Shapes = {}
    for pattern, shape in _load(peer)["models"][model].items():
        out |= dict.fromkeys(expand(pattern), tuple(shape))
    return out


def expand(pattern: str) -> list[str]:
    """`a.{0..2}.{weight,bias}` -> the six names it stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def compress(shapes: Shapes) -> dict[str, list[int]]:
    """The inverse of `expand`: names that differ in a number or the last word, and share a shape, become one line."""
    groups = {(tuple((word,) for word in name.split(".")), shape) for name, shape in shapes.items()}
    for position in range(-1, max(len(name.split(".")) for name in shapes)):
        merged: dict[tuple, set[str]] = {}
        for words, shape in groups:
            is_number = 0 <= position < len(words) and all(word.isdigit() for word in words[position])
            mergeable = is_number or (position == -1 and len(words) > 1)
            place = position % len(words) if mergeable else None
            rest = (words if place is None else (*words[:place], None, *words[place + 1 :]), shape, place)
            merged.setdefault(rest, set()).update(() if place is None else words[place])
        groups = {
            (words if place is None else (*words[:place], _ordered(found), *words[place + 1 :]), shape)
            for (words, shape, place), found in merged.items()
        }
    lines = {".".join(_written(word) for word in words): list(shape) for words, shape in groups}
    order = {name: i for i, name in enumerate(shapes)}
    out = dict(sorted(lines.items(), key=lambda line: min(order[name] for name in expand(line[0]))))
    assert sum(len(expand(pattern)) for pattern in out) == len(shapes)
    assert all(shapes[name] == tuple(shape) for pattern, shape in out.items() for name in expand(pattern))
    return out


def parameters(shapes: Shapes) -> int:
    """How many numbers a checkpoint holds."""
    return sum(math.prod(shape) for shape in shapes.values())


def _load(peer: str) -> dict:
    return json.loads((FOLDER / f"{peer}.json").read_text())


def _choices(part: str) -> list[str]:
    first, dots, last = part.partition("..")
    return [str(n) for n in range(int(first), int(last) + 1)] if dots else part.split(",")


def _ordered(words: set[str]) -> tuple[str, ...]:
    return tuple(sorted(words, key=lambda word: (len(word), word) if word.isdigit() else (0, word)))


def _written(words: tuple[str, ...]) -> str:
    if len(words) == 1:
        return words[0]
    if words[0].isdigit() and [int(word) for word in words] == list(range(int(words[0]), int(words[-1]) + 1)):
        return f"{{{words[0]}..{words[-1]}}}"
    return f"{{{','.join(words)}}}"
