"""Gateways and relays: who follows whom and which stores a link carries, by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hypothesis import given
from hypothesis import strategies as st

from everwrite.server.topology import Place, Stalls, View, gateway_of

REGIONS = ("us", "eu", "ap")
Cluster = dict[Place, int]  # each node's store id


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Regions of one to four nodes."""
    places = [Place(region, f"{region}-{n}") for region in REGIONS for n in range(draw(st.integers(1, 4)))]
    return {place: number + 1 for number, place in enumerate(places)}


@st.composite
def clusters_and_dead(draw: st.DrawFn) -> tuple[Cluster, set[Place]]:
    """A cluster and its dead nodes; at least one of each region is alive."""
    cluster = draw(clusters())
    dead = draw(st.sets(st.sampled_from(sorted(cluster))))
    for region in REGIONS:
        nodes = [place for place in cluster if place.region == region]
        if dead >= set(nodes):
            dead.remove(draw(st.sampled_from(nodes)))
    return cluster, dead


def view(cluster: Cluster, own: Place, alive: set[Place]) -> View:
    names = frozenset(place.node for place in alive | {own} if place.region == own.region)
    return View(own, cluster[own], names, {store: place for place, store in cluster.items()})


def links(cluster: Cluster, views: Mapping[Place, View]) -> Iterator[tuple[Place, Place, frozenset[int]]]:
    """The links between the nodes that have views: from, to, and the stores carried."""
    for source in views:
        for target in views:
            if source != target and views[target].follows(source):
                yield source, target, views[source].carried(target, cluster[target], cluster.values())


def reached(store: int, holder: Place, edges: list[tuple[Place, Place, frozenset[int]]]) -> set[Place]:
    """Where the updates of a store get to from one node that holds them."""
    found = {holder}
    while more := {target for source, target, stores in edges if source in found and store in stores} - found:
        found |= more
    return found


@given(clusters_and_dead())
def test_when_views_agree_one_node_of_each_region_follows_a_node_of_another(case: tuple[Cluster, set[Place]]) -> None:
    cluster, dead = case
    alive = set(cluster) - dead
    for followed in alive:
        for region in set(REGIONS) - {followed.region}:
            followers = [
                place for place in alive if place.region == region and view(cluster, place, alive).follows(followed)
            ]
            assert len(followers) == 1


@given(clusters_and_dead())
def test_when_views_agree_an_origin_comes_to_each_node_over_exactly_one_link(case: tuple[Cluster, set[Place]]) -> None:
    cluster, dead = case
    alive = set(cluster) - dead
    edges = list(links(cluster, {place: view(cluster, place, alive) for place in alive}))
    for origin in alive:
        store = cluster[origin]
        assert reached(store, origin, edges) == alive
        for target in alive - {origin}:
            bringing = [source for source, end, stores in edges if end == target and store in stores]
            # To its author a link from each node goes: what it has lost, any of them may be the one to have.
            assert len(bringing) == 1


@given(clusters_and_dead())
def test_every_link_would_give_back_what_its_receiver_has_lost(case: tuple[Cluster, set[Place]]) -> None:
    cluster, dead = case
    alive = set(cluster) - dead
    for _, target, stores in links(cluster, {place: view(cluster, place, alive) for place in alive}):
        assert cluster[target] in stores


@given(clusters_and_dead())
def test_what_a_dead_node_has_left_behind_reaches_its_region_from_anyone_and_others_from_its_speaker(
    case: tuple[Cluster, set[Place]],
) -> None:
    cluster, dead = case
    alive = set(cluster) - dead
    edges = list(links(cluster, {place: view(cluster, place, alive) for place in alive}))
    for origin in dead:
        at_home = {place for place in alive if place.region == origin.region}
        for holder in at_home:
            found = reached(cluster[origin], holder, edges)
            assert found >= at_home
            assert {place.region for place in found} == set(REGIONS)
        for region in set(REGIONS) - {origin.region}:
            crossing = [
                source
                for source, target, stores in edges
                if (source.region, target.region) == (origin.region, region) and cluster[origin] in stores
            ]
            # The speaker may be followed by one node only, so that the tail crosses once.
            assert len(crossing) == 1


@given(clusters(), st.data())
def test_no_views_keep_an_update_from_a_region_that_follows_any_node_of_its_own(
    cluster: Cluster, data: st.DataObject
) -> None:
    places = sorted(cluster)
    views = {place: view(cluster, place, data.draw(st.sets(st.sampled_from(places)))) for place in places}
    edges = list(links(cluster, views))
    crossings = {(source.region, target.region) for source, target, _ in edges}
    with_help = [
        (source, target, stores | {store for store in cluster.values() if views[source].may_help(target, store)})
        for source, target, stores in edges
    ]
    for origin in places:
        for holder in (place for place in places if place.region == origin.region):
            expected = {
                place for place in places if place.region == origin.region or (origin.region, place.region) in crossings
            }
            assert reached(cluster[origin], holder, with_help) >= expected


@given(st.sets(st.text("abc-", min_size=1), min_size=2), st.data())
def test_when_a_node_goes_only_what_it_followed_moves(nodes: set[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(nodes)))
    for number in range(8):
        followed = Place("far", f"far-{number}")
        before, after = gateway_of(followed, nodes), gateway_of(followed, nodes - {gone})
        assert before in (after, gone)


def test_the_work_is_spread() -> None:
    nodes = ["us-0", "us-1", "us-2"]
    shares = [gateway_of(Place("eu", f"eu-{number}"), nodes) for number in range(300)]
    assert all(60 < shares.count(node) < 140 for node in nodes)


def test_a_store_that_nobody_has_named_goes_to_neighbours_only() -> None:
    own = View(Place("us", "us-0"), 1, frozenset({"us-0", "us-1"}), {1: Place("us", "us-0"), 2: Place("us", "us-1")})
    assert 99 in own.carried(Place("us", "us-1"), 2, [1, 2, 99])
    assert 99 not in own.carried(Place("eu", "eu-0"), 3, [1, 2, 99])
    assert own.may_help(Place("us", "us-1"), 99)
    assert not own.may_help(Place("eu", "eu-0"), 99)


def test_an_earlier_store_of_a_node_is_carried_with_its_present_one() -> None:
    places = {1: Place("us", "us-0"), 7: Place("us", "us-0"), 2: Place("us", "us-1")}
    own = View(Place("us", "us-0"), 1, frozenset({"us-0", "us-1"}), places)
    assert own.carried(Place("us", "us-1"), 2, places) == {1, 7, 2}
    assert own.carried(Place("eu", "eu-0"), 3, places) == {1, 7, 3}


def test_a_cut_between_two_regions_is_not_got_round_through_a_third() -> None:
    places = {1: Place("us", "us-0"), 2: Place("us", "us-1"), 3: Place("eu", "eu-0"), 4: Place("ap", "ap-0")}
    own = View(Place("us", "us-0"), 1, frozenset({"us-0", "us-1"}), places)
    assert [store for store in places if own.may_help(Place("ap", "ap-0"), store)] == [1, 2, 4]


def test_a_position_that_stands_still_is_stalled_until_it_has_got_to_where_it_should_have_been() -> None:
    stalls = Stalls(5.0)
    assert stalls.look(0.0, {1: 10}, {1: 10, 2: 20}) == set()
    assert stalls.look(4.9, {1: 10}, {1: 10, 2: 25}) == set()
    assert stalls.look(5.0, {1: 10}, {1: 10, 2: 25}) == {2}
    assert stalls.look(6.0, {1: 10, 2: 24}, {1: 10, 2: 90}) == {2}
    assert stalls.look(7.0, {1: 10, 2: 25}, {1: 10, 2: 90}) == set()
    assert stalls.look(11.9, {1: 10, 2: 25}, {1: 10, 2: 90}) == set()
    assert stalls.look(12.0, {1: 10, 2: 25}, {1: 10, 2: 90}) == {2}


def test_a_position_that_moves_is_not_stalled_however_far_behind() -> None:
    stalls = Stalls(5.0)
    for second in range(0, 100, 4):
        assert stalls.look(float(second), {1: second}, {1: 1000}) == set()


def test_a_peer_that_is_told_to_be_level_in_between_begins_anew() -> None:
    stalls = Stalls(5.0)
    stalls.look(0.0, {1: 10}, {1: 20})
    stalls.look(4.0, {1: 20}, {1: 20})
    assert stalls.look(5.0, {1: 20}, {1: 30}) == set()
    assert stalls.look(9.9, {1: 20}, {1: 30}) == set()
    assert stalls.look(10.0, {1: 20}, {1: 30}) == {1}
