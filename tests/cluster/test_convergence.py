"""What concurrent writes to the same key in different regions come to.

Each test isolates the regions, writes in each, heals the links and looks at all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from tests.cluster.processes import REGIONS, Lab
from tests.support import eventually

Read = Callable[[redis.Redis], Any]


def same_everywhere(lab: Lab, read: Read, expected: Any) -> None:
    """Wait until every region answers with what is expected."""
    clients = lab.clients()
    answers: list[Any] = []

    def agree() -> bool:
        answers[:] = [read(client) for client in clients]
        return all(answer == expected for answer in answers)

    try:
        eventually(agree, what=f"{expected!r} in every region")
    except AssertionError:
        raise AssertionError(
            f"expected {expected!r} everywhere, got {dict(zip(REGIONS, answers, strict=True))}"
        ) from None


def agreed(lab: Lab, read: Read) -> Any:
    """Wait until every region answers the same, something true, and return that."""
    clients = lab.clients()

    def answer() -> list[Any]:
        answers = [read(client) for client in clients]
        return answers if answers[0] and all(each == answers[0] for each in answers) else []

    return eventually(answer, what="the same answer in every region")[0]


def test_an_element_added_while_another_region_removes_it_stays(lab: Lab) -> None:
    us, eu, apac = lab.clients()
    us.sadd("basket", "tea", "milk")
    same_everywhere(lab, lambda client: client.smembers("basket"), {b"tea", b"milk"})
    lab.cut_all()
    assert us.srem("basket", "tea", "milk") == 2
    eu.sadd("basket", "tea")
    assert eu.smembers("basket") == {b"tea", b"milk"}
    assert us.exists("basket") == 0
    lab.heal()
    same_everywhere(lab, lambda client: client.smembers("basket"), {b"tea"})
    assert apac.type("basket") == b"set"


def test_an_element_removed_and_added_again_while_another_region_removes_it_stays(lab: Lab) -> None:
    us, eu, _ = lab.clients()
    us.sadd("again", "tea")
    same_everywhere(lab, lambda client: client.smembers("again"), {b"tea"})
    lab.cut_all()
    us.srem("again", "tea")
    eu.srem("again", "tea")
    eu.sadd("again", "tea")
    lab.heal()
    same_everywhere(lab, lambda client: client.smembers("again"), {b"tea"})


def test_an_element_removed_in_two_regions_is_gone(lab: Lab) -> None:
    us, eu, _ = lab.clients()
    us.sadd("gone", "tea", "milk")
    same_everywhere(lab, lambda client: client.scard("gone"), 2)
    lab.cut_all()
    us.srem("gone", "tea")
    eu.srem("gone", "tea")
    lab.heal()
    same_everywhere(lab, lambda client: client.smembers("gone"), {b"milk"})


def test_deleting_a_set_leaves_what_was_added_meanwhile(lab: Lab) -> None:
    us, eu, _ = lab.clients()
    us.sadd("crate", "one", "two")
    same_everywhere(lab, lambda client: client.scard("crate"), 2)
    lab.cut_all()
    us.delete("crate")
    eu.sadd("crate", "three")
    lab.heal()
    same_everywhere(lab, lambda client: client.smembers("crate"), {b"three"})


def test_increments_that_a_delete_had_not_seen_survive_it(lab: Lab) -> None:
    us, eu, apac = lab.clients()
    us.incrby("visits", 100)
    eu.incrby("visits", 20)
    same_everywhere(lab, lambda client: client.get("visits"), b"120")
    lab.cut_all()
    assert us.incrby("visits", 7) == 127
    assert apac.incrby("visits", 3) == 123
    assert eu.delete("visits") == 1
    assert eu.incrby("visits", 1000) == 1000
    lab.heal()
    same_everywhere(lab, lambda client: client.get("visits"), b"1010")


def test_two_regions_delete_the_same_increments_once(lab: Lab) -> None:
    us, eu, apac = lab.clients()
    us.incrby("twice", 5)
    same_everywhere(lab, lambda client: client.get("twice"), b"5")
    lab.cut_all()
    us.delete("twice")
    eu.delete("twice")
    apac.incr("twice")
    lab.heal()
    same_everywhere(lab, lambda client: client.get("twice"), b"1")


def test_concurrent_sets_have_one_winner_and_every_region_can_say_why(lab: Lab) -> None:
    clients = lab.clients()
    lab.cut_all()
    for region, client in zip(REGIONS, clients, strict=True):
        client.set("colour", f"from {region}")
    lab.heal()
    value = agreed(lab, lambda client: client.get("colour"))
    assert value in {f"from {region}".encode() for region in REGIONS}
    why = agreed(lab, lambda client: client.execute_command("EW.WHY", "colour"))
    winner = value.decode().removeprefix("from ")
    assert winner.encode() in flat(why)


def flat(reply: Any) -> list[Any]:
    """The scalars of a nested reply, in order."""
    if isinstance(reply, dict):
        return [scalar for pair in reply.items() for scalar in flat(pair)]
    if isinstance(reply, list | tuple | set):
        return [scalar for item in reply for scalar in flat(item)]
    return [reply]


def test_a_delete_and_a_set_compete_like_two_sets(lab: Lab) -> None:
    us, eu, _ = lab.clients()
    us.set("page", "old")
    same_everywhere(lab, lambda client: client.get("page"), b"old")
    lab.cut_all()
    us.delete("page")
    # A later write of another region: its clock is ahead of the delete's by then.
    eu.set("page", "first")
    eu.set("page", "second")
    lab.heal()
    exists = agreed(lab, lambda client: [client.exists("page"), client.get("page")])
    assert exists in ([1, b"second"], [0, None])


def test_fields_of_a_map_merge_one_by_one(lab: Lab) -> None:
    us, eu, apac = lab.clients()
    us.hset("user", mapping={"name": "Ada", "visits": 1})
    same_everywhere(lab, lambda client: client.hlen("user"), 2)
    lab.cut_all()
    us.hset("user", "mail", "ada@example.org")
    eu.hset("user", "name", "Ada L.")
    eu.hincrby("user", "visits", 10)
    apac.hincrby("user", "visits", 100)
    lab.heal()
    expected = {b"name": b"Ada L.", b"mail": b"ada@example.org", b"visits": b"111"}
    same_everywhere(lab, lambda client: client.hgetall("user"), expected)


def test_a_key_written_as_two_types_shows_the_same_one_everywhere(lab: Lab) -> None:
    us, eu, _ = lab.clients()
    lab.cut_all()
    us.sadd("mixed", "element")
    eu.set("mixed", "value")
    lab.heal()
    assert agreed(lab, lambda client: client.type("mixed")) in (b"set", b"string")


def test_a_deadline_reaches_every_region(lab: Lab) -> None:
    us = lab.client("us-east")
    us.set("lease", "held", ex=1000)
    same_everywhere(lab, lambda client: 0 < client.ttl("lease") <= 1000, True)
    us.persist("lease")
    same_everywhere(lab, lambda client: client.ttl("lease"), -1)


def test_wait_counts_regions_that_have_the_write(lab: Lab) -> None:
    us = lab.client("us-east")
    us.set("waited", "for")
    assert us.wait(2, 30_000) == 2
    lab.cut_all()
    us.set("waited", "in vain")
    assert us.wait(1, 50) == 0
