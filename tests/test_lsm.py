"""The Lsm against a sorted dictionary, and what its iterators promise."""

from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from everwrite.lsm import Lsm
from everwrite.memory_files import MemoryFiles

keys = st.binary(min_size=1, max_size=3) | st.sampled_from([b"x" * 30 + bytes([i]) for i in range(20)])
values = st.binary(max_size=50) | st.builds(bytes, st.sampled_from([300, 5_000]))


class LsmMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = MemoryFiles()
        self.lsm = Lsm(self.files, "lsm")
        self.model: dict[bytes, bytes] = {}
        self.iterator: Iterator[tuple[bytes, bytes]] | None = None
        self.behind = b""
        self.started = False

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.lsm[key] = value
        self.model[key] = value

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        del self.lsm[key]
        self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert (key in self.lsm) == (key in self.model)
        if key in self.model:
            assert self.lsm[key] == self.model[key]

    @rule(key=keys)
    def scan(self, key: bytes) -> None:
        assert list(self.lsm.items(key)) == sorted(item for item in self.model.items() if item[0] >= key)

    @rule()
    def freeze(self) -> None:
        self.lsm.freeze(b"checkpoint")

    @rule(key=keys)
    def open_iterator(self, key: bytes) -> None:
        self.iterator = self.lsm.items(key)
        self.behind = key
        self.started = False

    @rule()
    def step_iterator(self) -> None:
        if self.iterator is None:
            return
        ahead = [k for k in self.model if k > self.behind or (not self.started and k == self.behind)]
        found = next(self.iterator, None)
        if not ahead:
            assert found is None
            self.iterator = None
            return
        assert found == (min(ahead), self.model[min(ahead)])
        self.behind = min(ahead)
        self.started = True

    @invariant()
    def same(self) -> None:
        assert list(self.lsm.items()) == sorted(self.model.items())


TestLsm = LsmMachine.TestCase
TestLsm.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
