"""Whole states for a receiver that the log no longer serves: only the one they were made for may believe the claim."""

from __future__ import annotations

import pytest

import everwrite
from everwrite import Database, GapError
from everwrite.memory_files import MemoryFiles


def open_store(store_id: int) -> Database:
    return everwrite.open("/data", "os", files=MemoryFiles(), background=False, store_id=store_id)


def test_states_and_their_claim_bring_a_store_up_to_date() -> None:
    sender, receiver = open_store(1), open_store(2)
    sender[b"k"] = b"v"
    sender.set(b"s").add(b"x")
    for batch in sender.resync_batches(receiver.applied):
        receiver.apply(batch)
    assert receiver[b"k"] == b"v"
    assert list(receiver.set(b"s")) == [b"x"]
    assert receiver.applied == sender.applied


def test_a_claim_is_not_for_a_store_that_lacks_what_was_left_out() -> None:
    sender, near, far = open_store(1), open_store(2), open_store(3)
    sender[b"old"] = b"1"
    for batch in sender.changes(near.applied):
        near.apply(batch)
    sender[b"new"] = b"2"
    # `near` has the old key, so it isn't among the states.
    *states, claim = sender.resync_batches(near.applied)
    for batch in states:
        far.apply(batch)
    with pytest.raises(GapError) as refusal:
        far.apply(claim)
    assert (refusal.value.origin, refusal.value.held) == (sender.origin, 0)
    assert refusal.value.required == near.applied[sender.origin]
    assert dict(far.applied) == {}
    for batch in sender.changes(far.applied):
        far.apply(batch)
    assert dict(far) == {b"old": b"1", b"new": b"2"}


def test_states_of_one_resync_do_not_complete_the_claim_of_another() -> None:
    sender, near, far = open_store(1), open_store(2), open_store(3)
    sender[b"old"] = b"1"
    for batch in sender.changes(near.applied):
        near.apply(batch)
    sender[b"new"] = b"2"
    *for_near, _ = sender.resync_batches(near.applied)
    *_, claim_for_far = sender.resync_batches(far.applied)
    for batch in for_near:
        far.apply(batch)
    with pytest.raises(GapError):
        far.apply(claim_for_far)
    assert dict(far.applied) == {}
