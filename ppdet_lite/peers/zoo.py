"""The zoo: published weights of other projects, each with a name such as "torchvision/fasterrcnn_resnet50_fpn"."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.download import DIGEST_LENGTHS, Remote, cache_folder, cached_file

ZOO_FILE = Path(__file__).with_name("zoo.yml")
PREFIX = "zoo:"


class Project(NamedTuple):
    """A project that publishes weights."""

    key: str  # begins the names of its entries
    title: str
    page: str  # address of its list of models
    license: str
    license_url: str
    terms: str | None  # what the project states about its weights, if it differs from the license of its code


class Entry(NamedTuple):
    """A published file: the weights of a detector, or of a classifier on ImageNet."""

    name: str
    project: Project
    remote: Remote
    peer: str  # key in `PEERS`
    recipe: str | None  # name of the recipe; None for a classifier
    overrides: tuple[str, ...]  # differences from the recipe, as "a.b=value"
    ap: float | None  # box AP on COCO val2017, published by the project
    bn_epsilon: float | None  # epsilon of the batch norms, if it is not 1e-5
    note: str | None

    @property
    def path(self) -> Path:
        """The place of the file in the cache."""
        return cache_folder() / "zoo" / self.project.key / self.remote.name

    @property
    def spec(self) -> str:
        """The entry as the value of a setting or an argument: "zoo:NAME"."""
        return f"{PREFIX}{self.name}"

    def facts(self) -> list[tuple[str, str]]:
        """Return what is known about the entry, as pairs of title and text."""
        project, path = self.project, self.path
        digest = f"{self.remote.algorithm} {self.remote.digest}..." if self.remote.digest else "none"
        facts = [
            ("name", self.spec),
            ("from", f"{project.title}, {project.page}"),
            ("COCO box AP", None if self.ap is None else f"{self.ap}, published by {project.title}; not measured here"),
            ("note", self.note),
            ("recipe", self.recipe or "none: weights of a classifier, for pretrain_weights"),
            ("differences", " ".join(f'"{text}"' for text in self.overrides)),
            ("batch norm epsilon", None if self.bn_epsilon is None else f"{self.bn_epsilon:g}"),
            ("address", self.remote.url),
            ("published checksum", digest),
            ("file", f"{path.stat().st_size / 1e6:.0f} MB in {path}" if path.is_file() else "not downloaded"),
            ("license", f"{project.license}, {project.license_url}"),
            ("terms", project.terms),
        ]
        return [(title, text) for title, text in facts if text]


def is_zoo(spec: str | PurePath) -> bool:
    """Return whether a value is the name of an entry, "zoo:NAME", instead of a path."""
    return str(spec).startswith(PREFIX)


def find_entry(spec: str | PurePath) -> Entry:
    """Return the entry "zoo:NAME" or "NAME". Raises UserError with the nearest name if there is none."""
    name = PurePath(spec).as_posix().removeprefix(PREFIX)
    entries = zoo_entries()
    if name in entries:
        return entries[name]
    by_file = {entry.rpartition("/")[2]: entry for entry in entries}
    nearest = get_close_matches(name, entries, n=1) or get_close_matches(name.rpartition("/")[2], by_file, n=1)
    hint = f"; did you mean {PREFIX}{by_file.get(nearest[0], nearest[0])}?" if nearest else ""
    raise UserError(f"{PREFIX}{name}: not in the zoo{hint or '; `ppdet-lite zoo list` has all names'}")


def find_detector(spec: str | PurePath) -> Entry:
    """Return the entry of a detector (see `find_entry`). Raises UserError if it is a classifier."""
    entry = find_entry(spec)
    if entry.recipe is None:
        raise UserError(f"{entry.spec}: weights of a classifier, which detect nothing; use them as pretrain_weights")
    return entry


def table(entries: Iterable[Entry]) -> list[str]:
    """Return lines with the name, AP, size (if downloaded) and recipe of entries, and the license of each project."""
    lines = []
    for project, group in groupby(entries, lambda entry: entry.project):
        lines.append(f"{project.title}: {project.license}, {project.license_url}")
        lines += [f"  {project.terms}"] if project.terms else []
        for entry in group:
            size = f"{entry.path.stat().st_size / 1e6:.0f} MB" if entry.path.is_file() else ""
            ap = "" if entry.ap is None else f"AP {entry.ap}"
            lines.append(f"  {entry.name:<53} {ap:<8} {size:<7} {entry.recipe or 'for pretrain_weights'}")
    return [
        *lines,
        "AP: box AP on COCO val2017, published by each project and not measured here. Size: downloaded files.",
    ]


def downloaded(entry: Entry) -> Path:
    """Return the file of an entry in the cache, downloaded if necessary (see `cached_file`)."""
    return cached_file(entry.remote, entry.path)


def zoo_entries() -> Mapping[str, Entry]:
    """Return all entries by their names, in the order of the file."""
    return _read(ZOO_FILE)


@lru_cache(maxsize=1)
def _read(file: Path) -> Mapping[str, Entry]:
    projects = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {entry.name: entry for key, content in projects.items() for entry in _entries(key, content)}


def _entries(key: str, content: Mapping[str, Any]) -> Iterator[Entry]:
    title, page, license, license_url = (content[name] for name in ("title", "page", "license", "license_url"))
    project = Project(key, title, page, license, license_url, content.get("terms"))
    for name, fields in {**content["detectors"], **content.get("classifiers", {})}.items():
        algorithm = next((algorithm for algorithm in DIGEST_LENGTHS if algorithm in fields), "sha256")
        yield Entry(
            name=f"{key}/{name}",
            project=project,
            remote=Remote(fields["url"], algorithm, fields.get(algorithm, "")),
            peer=fields.get("from", key),
            recipe=fields.get("recipe"),
            overrides=tuple(fields.get("overrides", ())),
            ap=fields.get("ap"),
            bn_epsilon=fields.get("bn_epsilon"),
            note=fields.get("note"),
        )
