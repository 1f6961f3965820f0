"""Certificates: what is made, what is refused, and mutual TLS over them."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from everwrite.errors import ConfigError, PeerError
from everwrite.server import certs as certs_module
from everwrite.server.certs import (
    check_certs,
    client_context,
    init_authority,
    make_node,
    peer_identity,
    server_context,
)
from everwrite.server.config import Certs, NodeConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_authority(tmp_path / "certs", cluster="c1")
    return tmp_path / "certs"


@pytest.fixture
def east(folder: Path) -> Certs:
    return make_node(folder, region="us-east", node="us-east-0", hosts=["db.example", "127.0.0.1"])


def connect(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Run a handshake in memory; also one byte each way, since TLS 1.3 judges the client's certificate late."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(to_client, to_server, server_side=False)
    b = server.wrap_bio(to_server, to_client, server_side=True)
    done = [False, False]
    for _ in range(10):
        for number, side in enumerate((a, b)):
            if not done[number]:
                try:
                    side.do_handshake()
                    done[number] = True
                except ssl.SSLWantReadError:
                    pass
        if all(done):
            break
    a.write(b"x")
    assert b.read(1) == b"x"
    b.write(b"y")
    assert a.read(1) == b"y"
    return a, b


def config_for(certs: Certs, *, region: str = "us-east", node: str = "us-east-0", cluster: str = "c1") -> NodeConfig:
    return NodeConfig(cluster=cluster, region=region, node=node, certs=certs)


def test_both_sides_learn_who_the_other_is(folder: Path, east: Certs) -> None:
    west = make_node(folder, region="eu-west", node="eu-west-0")
    client, server = connect(client_context(east), server_context(west))
    assert peer_identity(server) == ("c1", "us-east", "us-east-0")
    assert peer_identity(client) == ("c1", "eu-west", "eu-west-0")
    assert client.version() == "TLSv1.3"


def test_tls_1_2_is_the_oldest(folder: Path, east: Certs) -> None:
    client = client_context(east)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert connect(client, server_context(east))[0].version() == "TLSv1.2"
    for context in (client_context(east), server_context(east)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_client_without_a_certificate_is_refused(east: Certs) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cafile=east.ca)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        connect(client, server_context(east))


def test_another_authority_is_refused_by_both_sides(tmp_path: Path, east: Certs) -> None:
    init_authority(tmp_path / "other", cluster="c1")
    impostor = make_node(tmp_path / "other", region="us-east", node="us-east-0")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(client_context(east), server_context(impostor))
    trusting = client_context(impostor)
    trusting.load_verify_locations(cafile=east.ca)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(trusting, server_context(east))


def test_the_chain_passes_strict_verification(folder: Path, east: Certs) -> None:
    contexts = client_context(east), server_context(east)
    for context in contexts:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert peer_identity(connect(*contexts)[0]) == ("c1", "us-east", "us-east-0")


def test_host_names_and_addresses_are_in_the_certificate(east: Certs) -> None:
    client = client_context(east)
    connection = connect(client, server_context(east))[0]
    names = connection.getpeercert()["subjectAltName"]  # type: ignore[index]
    assert ("DNS", "db.example") in names
    assert ("IP Address", "127.0.0.1") in names


def test_keys_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        init_authority(tmp_path)
        node = make_node(tmp_path, region="r", node="n")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(node.key.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.key", "ca.pem", "n.key", "n.pem"]


def test_nothing_is_overwritten_without_force(folder: Path, east: Certs) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="exists already and is kept; --force"):
        init_authority(folder)
    with pytest.raises(ConfigError, match=r"us-east-0\.pem.*exists already"):
        make_node(folder, region="us-east", node="us-east-0")
    east.cert.unlink()
    with pytest.raises(ConfigError, match=r"us-east-0\.key: exists already"):
        make_node(folder, region="us-east", node="us-east-0")
    assert not east.cert.exists()
    east.cert.write_bytes(before[east.cert])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert make_node(folder, region="us-east", node="us-east-0", force=True) == east
    assert east.cert.read_bytes() != before[east.cert]


def test_a_node_needs_the_authority_and_its_key(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem: can't be read: No such file"):
        make_node(tmp_path / "none", region="r", node="n")
    init_authority(tmp_path / "other")
    (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key: isn't the key of"):
        make_node(folder, region="r", node="n")
    (folder / "ca.key").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"ca\.key: is no private key"):
        make_node(folder, region="r", node="n")


@pytest.mark.parametrize(
    ("region", "node", "host"), [("R", "n", "h"), ("r", "a/b", "h"), ("r", "n", "h h"), ("r", "n", "")]
)
def test_names_that_fit_no_certificate_are_refused(folder: Path, region: str, node: str, host: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        make_node(folder, region=region, node=node, hosts=[host])
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem"]


def test_right_certificates_pass_the_check(east: Certs) -> None:
    check_certs(config_for(east))
    check_certs(NodeConfig())


def test_a_certificate_of_another_node_fails_the_check(east: Certs) -> None:
    for other in ({"region": "apac"}, {"node": "us-east-1"}, {"cluster": "c2"}):
        with pytest.raises(ConfigError, match="is for everwrite://c1/us-east/us-east-0, but this node is everwrite://"):
            check_certs(config_for(east, **other))


def test_a_certificate_of_another_authority_fails_the_check(tmp_path: Path, east: Certs) -> None:
    init_authority(tmp_path / "other", cluster="c1")
    mixed = Certs(tmp_path / "other" / "ca.pem", east.cert, east.key)
    with pytest.raises(ConfigError, match="isn't signed by the authority"):
        check_certs(config_for(mixed))


def test_an_expired_certificate_fails_the_check(folder: Path) -> None:
    old = make_node(folder, region="us-east", node="us-east-0", days=0)
    # Valid for its skew allowance only, into the past: nothing has to wait for it to expire.
    with pytest.raises(ConfigError, match=r"is valid from .* make a new one, or set the clock"):
        check_certs(config_for(old))


@pytest.mark.parametrize("which", ["ca", "cert", "key"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated"])
def test_files_that_are_missing_or_damaged_are_named(east: Certs, which: str, damage: str) -> None:
    path: Path = getattr(east, which)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" if damage == "garbage" else path.read_bytes()[:100])
    for refuses in (server_context, client_context, lambda certs: check_certs(config_for(certs))):
        with pytest.raises(ConfigError, match=path.name.replace(".", r"\.")):
            refuses(east)


def test_a_key_of_another_certificate_is_refused(folder: Path, east: Certs) -> None:
    other = make_node(folder, region="apac", node="apac-0")
    with pytest.raises(ConfigError, match="a certificate and its private key"):
        server_context(Certs(east.ca, east.cert, other.key))


class FakeConnection:
    def __init__(self, names: tuple[tuple[str, str], ...] | None) -> None:
        self.certificate = None if names is None else {"subjectAltName": names}

    def getpeercert(self) -> object:
        return self.certificate


@pytest.mark.parametrize(
    "names",
    [
        None,
        (),
        (("DNS", "everwrite://c/r/n"),),
        (("URI", "https://c/r/n"),),
        (("URI", "everwrite://c/r"),),
        (("URI", "everwrite://c/r/n/x"),),
        (("URI", "everwrite://c/r/n\n"),),
        (("URI", "everwrite://c/r/n"), ("URI", "everwrite://c/r/m")),
    ],
)
def test_a_certificate_without_one_clear_identity_is_a_peers_fault(names: tuple[tuple[str, str], ...] | None) -> None:
    with pytest.raises(PeerError, match="must have one URI"):
        peer_identity(FakeConnection(names))


def test_certificates_of_others_without_identity_fail_the_check(folder: Path, east: Certs) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = certs_module._load_key(folder / "ca.key")
    now = datetime.datetime.now(datetime.UTC)
    nameless = (
        x509.CertificateBuilder()
        .subject_name(authority.subject)
        .issuer_name(authority.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    east.cert.write_bytes(certs_module._pem(nameless))
    with pytest.raises(ConfigError, match="doesn't say which node it is for"):
        check_certs(config_for(east))
