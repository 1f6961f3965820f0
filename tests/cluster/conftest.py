"""Fixtures that start real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.processes import Lab, Node, running_lab, running_node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node without peers, shared by the tests of a module."""
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three regions without added delay, shared by the tests of a module."""
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The shared lab, its links whole before and after the test."""
    yield shared_lab
    shared_lab.heal()
