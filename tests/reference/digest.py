"""The digest of a store, computed from docs/formats/digest.md and the states of its keys alone."""

from __future__ import annotations

from collections.abc import Iterable

from tests.reference.model import Counter, Element, KeyState
from tests.reference.vocabulary import COLLECTIONS, Dot, Kind

M64 = (1 << 64) - 1
M128 = (1 << 128) - 1
LEAVES = 1 << 14
REGISTER, ROW, AMOUNT, KIND, ELEMENTS, DEADLINE, DOT = range(1, 8)
SECOND = 0x2D358DCCAA6C78A5
NAME_FIRST, NAME_SECOND = 0x8BB84B93962EACC9, 0x4B33A62ED433D4A3

State = tuple[int, int]


def fold(a: int, b: int) -> int:
    product = a * b
    return (product ^ product >> 64) & M64


def hash64(data: bytes, seed: int) -> int:
    first = seed ^ 0xA0761D6478BD642F
    second = ((seed << 32 | seed >> 32) & M64) ^ 0xE7037ED1A0B428DB
    size = len(data)

    def word(start: int, width: int) -> int:
        return int.from_bytes(data[start : start + width], "little")

    a = b = at = 0
    if size > 16:
        while size - at > 16:
            second = fold(word(at, 8) ^ first, word(at + 8, 8) ^ second)
            at += 16
        a, b = word(size - 16, 8), word(size - 8, 8)
    elif size >= 8:
        a, b = word(0, 8), word(size - 8, 8)
    elif size >= 4:
        a, b = word(0, 4), word(size - 4, 4)
    elif size:
        a = data[0] << 16 | data[size >> 1] << 8 | data[size - 1]
    return fold(first ^ size ^ 0x8EBC6AF09C88C6E3, fold(a ^ first, b ^ second) ^ 0x589965CC75374CC3)


def absorb(state: State, tag: int, x: int, y: int) -> State:
    a = state[0] ^ x
    b = ((state[1] ^ y) + tag * 0x9E3779B97F4A7C15) & M64
    first = fold(a ^ 0xA0761D6478BD642F, b ^ 0xE7037ED1A0B428DB) + b
    second = fold(a ^ 0x8EBC6AF09C88C6E3, b ^ 0x589965CC75374CC3) ^ a
    return first & M64, second


def absorb_dot(state: State, tag: int, dot: Dot) -> State:
    return absorb(state, tag, dot.origin, dot.timestamp)


def absorb_counter(state: State, counter: Counter) -> State:
    for origin, row in sorted(counter.rows.items()):
        if row.alive:
            state = absorb(state, ROW, origin, row.total[0])
            state = absorb(state, AMOUNT, row.live & M64, 0)
    return state


def number(state: State) -> int:
    return state[1] << 64 | state[0]


def element_item(element: Element, kind: Kind, name: bytes) -> int:
    state = hash64(name, NAME_FIRST + kind), hash64(name, NAME_SECOND + kind)
    for dot in sorted(element.dots):
        state = absorb_dot(state, DOT, dot)
    return number(absorb_counter(state, element.counter))


def key_item(entry_key: bytes, key: KeyState) -> int:
    kinds = {kind: dict(key.of_kind(kind)) for kind in COLLECTIONS}
    if key.register[1] is None and not key.counter.alive and not any(kinds.values()):
        return 0
    state = hash64(entry_key, 0), hash64(entry_key, SECOND)
    if key.register[1] is not None:
        state = absorb_dot(state, REGISTER, key.register[0])
    state = absorb_counter(state, key.counter)
    if any(kinds.values()):
        total = 0
        for kind, elements in kinds.items():
            if elements:
                state = absorb_dot(state, KIND + 256 * kind, key.newest[kind])
            total += sum(element_item(element, kind, name) for name, element in elements.items())
        state = absorb(state, ELEMENTS, total & M64, total >> 64 & M64)
    dot, deadline_ms = key.deadline
    if deadline_ms and dot >= key.register[0]:
        state = absorb_dot(state, DEADLINE, dot)
        state = absorb(state, DEADLINE, deadline_ms, 0)
    return number(state)


def leaves(keys: Iterable[tuple[bytes, KeyState]]) -> bytes:
    """The leaves of a store with these users' keys, given by their entry keys."""
    sums = [0] * LEAVES
    for entry_key, key in keys:
        sums[hash64(entry_key, 0) >> 50] += key_item(entry_key, key)
    return b"".join((each & M128).to_bytes(16, "little") for each in sums)
