"""Set up the process before any test imports paddle, and keep what one test does to logging from the next."""

import logging
import shutil
from collections.abc import Iterator

import pytest

import ppdet_lite
from ppdet_lite.core.log import PACKAGE

LONG = {"training", "deployment", "test_configs.py", "test_wheel.py"}  # started last, one would run alone at the end


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs what takes minutes, or repeats a proof on larger models."""
    parser.addoption("--slow", action="store_true", help="also export the deeper models, kill runs, watch memory")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked as slow, unless `--slow` is given; the longest files start first."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow, and other tests cover most of it: make test-slow"))


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """The command-line tools configure the package's logger; the next test finds it as after the import."""
    assert ppdet_lite.__version__  # imported first of all: it sets threads and malloc
    yield
    logger = logging.getLogger(PACKAGE)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module", autouse=True)
def folders_given_back(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs and exports that the tests of a file share add up to gigabytes: they go with it, unless one failed."""
    root = tmp_path_factory.getbasetemp()
    before, failed = set(root.iterdir()), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        for folder in set(root.iterdir()) - before:
            shutil.rmtree(folder, ignore_errors=True)  # a link to the last of a name stays
