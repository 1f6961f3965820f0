from typing import Self

from typing_extensions import disjoint_base

from everwrite.mapping import StoreMapping
from everwrite.store import Store

@disjoint_base
class FrozenStore(StoreMapping):
    @classmethod
    def of(cls, parent: Store) -> Self: ...
    def let_go(self) -> None: ...
