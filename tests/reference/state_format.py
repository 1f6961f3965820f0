"""Reads a key's whole state as stores hand it to each other, from its description in docs/formats alone."""

from __future__ import annotations

import struct

from tests.reference.model import NEVER, NOTHING, Counter, Element, KeyState, Row
from tests.reference.vocabulary import Dot, Kind

FULL_STATE = 1
HEAD, ELEMENT_STATE = 7, 8
HAS_REGISTER, IS_TOMBSTONE, HAS_EXPIRY, HAS_ROWS, HAS_COLLECTIONS, HAS_LOST = 1, 2, 4, 8, 16, 32
HAS_COUNTER, HAS_FLOOR = 1, 2


class Cursor:
    """Reads little-endian fields off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        assert size <= self.left, f"{size} bytes wanted at {self.at}, {self.left} left"
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def unsigned(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def signed(self) -> int:
        return int(struct.unpack("<q", self.take(8))[0])

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def slice(self) -> bytes:
        return self.take(self.varint())

    def dot(self) -> Dot:
        origin = self.unsigned()
        return Dot(self.unsigned(), origin)


def read_rows(cursor: Cursor, counter: Counter, context: dict[int, int] | None) -> None:
    """Rows of a head (with context) or of an element (None)."""
    for _ in range(cursor.varint()):
        origin, flags = cursor.unsigned(), cursor.byte()
        if context is not None and (timestamp := cursor.unsigned()):
            context[origin] = timestamp
        total = (cursor.unsigned(), cursor.signed()) if flags & HAS_COUNTER else NOTHING
        floor = (cursor.unsigned(), cursor.signed()) if flags & HAS_FLOOR else NOTHING
        counter.rows[origin] = Row(total, floor)


def read_head(data: bytes) -> tuple[KeyState, dict[Kind, int]]:
    """The state without its elements, and how many live elements it says it has of each kind."""
    cursor = Cursor(data)
    state = KeyState()
    counts: dict[Kind, int] = {}
    flags = cursor.byte()
    register = cursor.dot() if flags & HAS_REGISTER else NEVER
    if flags & HAS_EXPIRY:
        dot = cursor.dot()
        state.deadline = (dot, cursor.signed())
    if flags & HAS_LOST:
        cursor.dot()
    if flags & HAS_COLLECTIONS:
        for _ in range(cursor.byte()):
            kind = Kind(cursor.byte())
            assert kind > max(counts, default=Kind.STRING), "the kinds are out of order"
            newest = cursor.dot()
            counts[kind] = cursor.varint()
            if newest != NEVER:
                state.newest[kind] = newest
        cursor.take(16)  # the sum over the elements: derived, see tests/test_digest.py
    if flags & HAS_ROWS:
        read_rows(cursor, state.counter, state.context)
    elif flags & HAS_REGISTER:
        state.context[register.origin] = register.timestamp
    if flags & HAS_REGISTER:
        state.register = (register, None if flags & IS_TOMBSTONE else cursor.take(cursor.left))
    assert cursor.left == 0, "bytes behind the head"
    return state, counts


def read_element(data: bytes) -> Element:
    cursor = Cursor(data)
    element = Element()
    for _ in range(cursor.varint()):
        dot = cursor.dot()
        element.dots[dot] = cursor.slice()
    read_rows(cursor, element.counter, None)
    assert list(element.dots) == sorted(element.dots), "an element's dots are out of order"
    assert cursor.left == 0, "bytes behind the element"
    return element


def read_full_state(data: bytes) -> tuple[bytes, KeyState]:
    """The namespaced key, and its state. Checks the counts of live elements, which are derived."""
    cursor = Cursor(data)
    assert cursor.byte() == FULL_STATE
    assert cursor.dot() == NEVER
    assert cursor.unsigned() == 0
    key = cursor.slice()
    assert cursor.byte() == HEAD
    state, counts = read_head(cursor.slice())
    while cursor.left:
        assert cursor.byte() == ELEMENT_STATE
        kind = Kind(cursor.byte())
        name = cursor.slice()
        assert kind in counts, f"an element of {kind!r}, of which the head says nothing"
        state.entries[kind, name] = read_element(cursor.slice())
    alive = {kind: state.count(kind) for kind in counts}
    assert counts == alive, f"the head counts {counts}, but alive are {alive}"
    return key, state


def read_pushed_states(body: bytes) -> list[tuple[bytes, Dot]]:
    """Of a batch of changes: the namespaced keys whose states go ahead of changes, and these changes' dots."""
    found = []
    groups = Cursor(body)
    while groups.left:
        group = Cursor(groups.slice())
        ahead: set[bytes] = set()
        while group.left:
            change = Cursor(group.slice())
            flags, dot = change.byte(), change.dot()
            change.unsigned()
            key = change.slice()
            if flags & FULL_STATE and not dot.timestamp:
                ahead.add(key)
            elif key in ahead:
                ahead.remove(key)
                found.append((key, dot))
        assert not ahead, "a state goes ahead of no change"
    return found
