from typing import Self

from typing_extensions import disjoint_base

from everwrite.manifest import Manifest, TableInfo
from everwrite.mapping import StoreMapping
from everwrite.store import Store

@disjoint_base
class FrozenStore(StoreMapping):
    manifest: Manifest
    checkpoint: bytes
    log_end: int
    digest_at_start: bytes
    @classmethod
    def of(cls, parent: Store, with_checkpoint: bool = False, with_digest: bool = False) -> Self: ...
    @classmethod
    def for_inspection(cls, parent: Store) -> Self: ...
    @classmethod
    def for_backup(cls, parent: Store) -> Self: ...
    def write_memory(self, path: str, number: int) -> TableInfo | None: ...
    def let_go(self) -> None: ...
