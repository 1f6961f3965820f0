"""What a lab consists of: its regions, nodes, ports and round trips, and the configuration of each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from everwrite.errors import ConfigError, LabError
from everwrite.server.config import Certs, NodeConfig, Peer

__all__ = ["CLUSTER", "NODES_MAX", "REGIONS", "Place", "Plan", "region_of"]

CLUSTER = "everwrite-lab"
REGIONS = ("us-east", "eu-west", "apac")
ROUND_TRIP_MS = {
    frozenset(("us-east", "eu-west")): 80,
    frozenset(("eu-west", "apac")): 150,
    frozenset(("us-east", "apac")): 180,
}
# Each node of a region holds all of its keys: more of them than a quorum needs would only be more copies.
NODES_MAX = 3
# All nodes are on one machine: several in a region get less memory each than a node that has a machine of its own.
SHARED_MEMTABLE_BYTES = 64 << 20
SHARED_BLOCK_CACHE_BYTES = 64 << 20


class Place(msgspec.Struct, frozen=True):
    """One node of a lab: region and number in it, and its ports on loopback."""

    region: str
    number: int
    redis_port: int
    http_port: int
    peer_port: int

    @property
    def node(self) -> str:
        """The node's id."""
        return f"{self.region}-{self.number}"


class Plan:
    """The nodes of a lab, by id, and the round trip between each two.

    Raises `ConfigError` when the number of nodes or the ports are out of range.
    """

    def __init__(self, *, base_port: int = 7400, nodes: int = 1, wan: bool = True) -> None:
        if not 1 <= nodes <= NODES_MAX:
            raise ConfigError(f"--nodes {nodes}: must be from 1 to {NODES_MAX}")
        last_port = base_port + 100 * (len(REGIONS) - 1) + 10 * (nodes - 1) + 3
        if base_port < 0 or last_port > 65535:
            most = 65535 - (last_port - base_port)
            raise ConfigError(f"--base-port {base_port}: must be from 0 to {most}: the last port is {last_port}")
        self.wan = wan
        self.nodes = nodes
        self.places = {
            place.node: place
            for i, region in enumerate(REGIONS)
            for j in range(nodes)
            for place in [Place(region, j, *(base_port + 100 * i + 10 * j + k for k in (1, 2, 3)))]
        }

    def round_trip_ms(self, one: Place, other: Place) -> int:
        """The round trip between two nodes; 0 within a region, and everywhere without `wan`."""
        return ROUND_TRIP_MS.get(frozenset((one.region, other.region)), 0) if self.wan else 0

    def linked(self) -> list[tuple[Place, Place]]:
        """The ordered pairs of nodes in different regions."""
        places = self.places.values()
        return [(one, other) for one in places for other in places if one.region != other.region]

    def neighbours(self) -> list[tuple[Place, Place]]:
        """The ordered pairs of nodes in the same region; these reach each other directly."""
        places = self.places.values()
        return [(one, other) for one in places for other in places if one.region == other.region and one != other]

    def find(self, name: str) -> list[Place]:
        """The nodes that REGION or REGION/NUMBER means. Raises `LabError` that lists what there is."""
        region, slash, number = name.partition("/")
        region_of(region)
        here = [place for place in self.places.values() if place.region == region]
        found = [place for place in here if not slash or str(place.number) == number]
        if not found:
            known = ", ".join(f"{place.region}/{place.number}" for place in self.places.values())
            raise LabError(f"there is no node {name}: the nodes are {known}")
        return found

    def config(self, place: Place, link_ports: Mapping[str, int]) -> NodeConfig:
        """The configuration of a node; it reaches the node n of another region at loopback port `link_ports[n]`.

        Paths start at the node's own folder, so that the folder of the lab can be moved.
        """
        certs = Path("..") / "certs"
        peers = [
            Peer(other.region, f"127.0.0.1:{link_ports.get(other.node, other.peer_port)}", other.node)
            for other in self.places.values()
            if other != place
        ]
        config = NodeConfig(
            cluster=CLUSTER,
            region=place.region,
            node=place.node,
            data=Path("data"),
            redis_port=place.redis_port,
            http_port=place.http_port,
            peer_port=place.peer_port,
            peers=tuple(peers),
            certs=Certs(certs / "ca.pem", certs / f"{place.node}.pem", certs / f"{place.node}.key"),
        )
        if self.nodes == 1:
            return config
        return msgspec.structs.replace(
            config, memtable_bytes=SHARED_MEMTABLE_BYTES, block_cache_bytes=SHARED_BLOCK_CACHE_BYTES
        )


def region_of(name: str, regions: Sequence[str] = REGIONS) -> str:
    """`name`, when it is a region. Raises `LabError` that lists the regions."""
    if name not in regions:
        raise LabError(f"there is no region {name}: the regions are {', '.join(regions)}")
    return name
