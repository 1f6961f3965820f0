"""Certificates of a cluster: making them, and TLS contexts that demand them of both sides.

Every node has a certificate of the cluster's own authority. Who a node is stands in one URI of its
subjectAltName, `everwrite://<cluster>/<region>/<node>`. Both sides of a connection check that the chain ends in
the cluster's authority (the context does) and that the peer is the one they expect (`peer_identity`; the caller
compares). Host names aren't compared: a link may run through any proxy or tunnel, the identity stays.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from everwrite.errors import ConfigError, PeerError
from everwrite.server.config import NAME_ALLOWED, NAME_PATTERN, Certs, NodeConfig

__all__ = [
    "Identity",
    "check_certs",
    "client_context",
    "init_authority",
    "make_node",
    "node_certs",
    "peer_identity",
    "server_context",
]

Identity = tuple[str, str, str]  # cluster, region, node

AUTHORITY_DAYS = 3650
NODE_DAYS = 825  # more than this some TLS stacks refuse in a leaf
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")
_URI = re.compile(r"everwrite://([a-z0-9-]{1,63})/([a-z0-9-]{1,63})/([a-z0-9-]{1,63})")
_CLOCK_SKEW = datetime.timedelta(minutes=5)  # a node whose clock is a little behind must accept a fresh certificate


class HasPeerCertificate(Protocol):
    """What `peer_identity` needs: `ssl.SSLObject`, `ssl.SSLSocket` and `trio.SSLStream` after the handshake."""

    def getpeercert(self) -> Any:
        """The verified certificate as `ssl` describes it."""


# ---- making them ----


def init_authority(folder: Path, *, cluster: str = "everwrite", force: bool = False) -> tuple[Path, Path]:
    """Make a certificate authority for `cluster`: `ca.pem` and `ca.key` (mode 0600) in `folder`.

    With `force` an authority that is there is replaced, which invalidates all its node certificates.
    Raises `ConfigError` when one is there and `force` isn't given, or when the folder can't be written.
    """
    _check_names(cluster, "region", "node")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster), _common_name(f"{cluster} authority")])
    public = key.public_key()
    certificate = (
        _builder(name, name, public, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "ca.pem", folder / "ca.key"
    _write({paths[0]: _pem(certificate), paths[1]: _pem_key(key)}, force=force)
    return paths


def make_node(
    folder: Path,
    *,
    region: str,
    node: str,
    hosts: Iterable[str] = DEFAULT_HOSTS,
    days: int = NODE_DAYS,
    force: bool = False,
) -> Certs:
    """Make a certificate for a node, signed by the authority in `folder`: `<node>.pem` and `<node>.key` (mode 0600).

    `hosts` are the names and addresses under which other software may know the node.
    Raises `ConfigError` when the authority is missing or damaged, when the files are there and `force` isn't
    given, or when the folder can't be written.
    """
    authority = _load_certificate(folder / "ca.pem")
    authority_key = _load_key(folder / "ca.key")
    if authority.public_key() != authority_key.public_key():
        raise ConfigError(f"{folder / 'ca.key'}: isn't the key of {folder / 'ca.pem'}: restore the pair")
    cluster = _organization(authority, folder / "ca.pem")
    identity = _check_names(cluster, region, node)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity), *map(_general_name, hosts)]
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    certificate = (
        _builder(x509.Name([_common_name(node)]), authority.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certs = node_certs(folder, node)
    _write({certs.cert: _pem(certificate), certs.key: _pem_key(key)}, force=force)
    return certs


def _check_names(cluster: str, region: str, node: str) -> str:
    """The URI of a node."""
    for kind, name in (("cluster", cluster), ("region", region), ("node", node)):
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"{kind} {name!r}: must be {NAME_ALLOWED}")
    return f"everwrite://{cluster}/{region}/{node}"


def node_certs(folder: Path, node: str) -> Certs:
    """Where `init_authority` and `make_node` put the files of `node`."""
    return Certs(ca=folder / "ca.pem", cert=folder / f"{node}.pem", key=folder / f"{node}.key")


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _common_name(text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, text[:64])  # 64 is the limit of X.520


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise ConfigError(f"host {host!r}: must be a host name or an IP address")
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(files: Mapping[Path, bytes], *, force: bool) -> None:
    """Write all files, or none when one is there already. Keys are never readable by others, not even for a moment."""
    there = [str(path) for path in files if os.path.lexists(path)]
    if there and not force:
        raise ConfigError(f"{', '.join(there)}: exists already and is kept; --force replaces it")
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _replace(path, content, mode=0o600 if path.suffix == ".key" else 0o644)
        except OSError as error:
            raise ConfigError(f"{path}: can't be written: {error.strerror or error}") from error


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


# ---- reading them ----


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1 << 20)
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read: {error.strerror or error}; `everwrite certs` makes certificates"
        ) from error


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is no certificate in PEM form: {error}") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no private key in PEM form without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: must be an elliptic curve key, as `everwrite certs init` makes it")
    return key


def _organization(authority: x509.Certificate, path: Path) -> str:
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1:
        raise ConfigError(f"{path}: names no cluster: must be made by `everwrite certs init`")
    return str(names[0].value)


# ---- using them ----


def check_certs(config: NodeConfig) -> None:
    """Check that the certificates exist, are valid now, belong together, and name this node.

    Does nothing without certificates. Raises `ConfigError` that names the file.
    """
    certs = config.certs
    if certs is None:
        return
    authority = _load_certificate(certs.ca)
    certificate = _load_certificate(certs.cert)
    now = datetime.datetime.now(datetime.UTC)
    for path, one in ((certs.ca, authority), (certs.cert, certificate)):
        if not one.not_valid_before_utc <= now < one.not_valid_after_utc:
            raise ConfigError(
                f"{path}: is valid from {one.not_valid_before_utc} to {one.not_valid_after_utc}, and now it is "
                f"{now:%Y-%m-%d %H:%M:%S+00:00}: make a new one, or set the clock"
            )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"{certs.cert}: isn't signed by the authority {certs.ca}: make it with that one") from error
    identity = _own_identity(certificate, certs.cert)
    expected = (config.cluster, config.region, config.node)
    if identity != expected:
        its, ours = ("everwrite://" + "/".join(names) for names in (identity, expected))
        raise ConfigError(
            f"{certs.cert}: is for {its}, but this node is {ours}: use the node's own certificate, or correct "
            "cluster, region and node"
        )
    server_context(certs)


def _own_identity(certificate: x509.Certificate, path: Path) -> Identity:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    identities = [match for match in map(_URI.fullmatch, uris) if match]
    if len(identities) != 1:
        raise ConfigError(f"{path}: doesn't say which node it is for: must be made by `everwrite certs node`")
    return identities[0][1], identities[0][2], identities[0][3]


def server_context(certs: Certs) -> ssl.SSLContext:
    """TLS for the accepting side: TLS 1.2 or newer, and the client must show a certificate of the cluster.

    Raises `ConfigError` that names the file which is missing or wrong.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certs)
    # Nodes stay connected, so resumption gains nothing; a ticket that a peer never reads can break a quick close.
    context.num_tickets = 0
    return context


def client_context(certs: Certs) -> ssl.SSLContext:
    """TLS for the dialling side: as `server_context`. Pass no `server_hostname`; compare `peer_identity` instead.

    Raises `ConfigError` that names the file which is missing or wrong.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, certs)


def _context(protocol: int, certs: Certs) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    for path in (certs.ca, certs.cert, certs.key):
        _read(path)  # ssl's own error for a missing file doesn't say which
    try:
        context.load_verify_locations(cafile=certs.ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{certs.ca}: is no certificate in PEM form: {error}") from error
    try:
        # The password callback makes OpenSSL fail instead of asking on the terminal.
        context.load_cert_chain(certs.cert, certs.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certs.cert} and {certs.key}: must be a certificate and its private key, without a password: {error}"
        ) from error
    return context


def peer_identity(connection: HasPeerCertificate) -> Identity:
    """Who the other side is, by its verified certificate: (cluster, region, node).

    Raises `PeerError` when the certificate doesn't say, or says it twice.
    """
    certificate = connection.getpeercert() or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    identities = [match for match in map(_URI.fullmatch, uris) if match]
    if len(identities) != 1:
        shown = ", ".join(uris)[:200] or "no URI"
        raise PeerError(
            f"the peer's certificate must have one URI everwrite://CLUSTER/REGION/NODE, and has {shown}: "
            "make it with `everwrite certs node`"
        )
    return identities[0][1], identities[0][2], identities[0][3]
