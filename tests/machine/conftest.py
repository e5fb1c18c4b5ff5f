"""The container for tests of the machine ring: it boots, or the test fails; nothing here skips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine.base_root import SUITES
from tests.machine.container import Machine

_SECONDS = 1200  # the first test of a run may install the host's tools and build a base root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/machine/" in item.path.as_posix() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release: every test that asks for it, or for `machine`, runs once on each."""
    return str(request.param)


@pytest.fixture(scope="module")
def machine(suite: str) -> Iterator[Machine]:
    """A fresh booted machine that the tests of one file share, one after the other."""
    with Machine.create(suite) as fresh:
        fresh.boot()
        yield fresh
