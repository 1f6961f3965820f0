"""What the digests of stores must be when a run is over."""

from __future__ import annotations

from collections.abc import Iterable

from everwrite.digest import rebuild
from tests.simulation.engine_store import EngineStore


def check_digests(stores: Iterable[object]) -> None:
    """Each equals a rebuild, and stores that have converged have the same. The model has none."""
    engines = [store for store in stores if isinstance(store, EngineStore)]
    for store in engines:
        assert store.digest_leaves() == rebuild(store.database), f"{store.origin:#x}: the digest isn't what it holds"
    assert len({store.digest() for store in engines}) <= 1, "the stores have converged, but their digests differ"
