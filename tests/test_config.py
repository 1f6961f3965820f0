"""Configuration: precedence, origins, and a message for each kind of wrong setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everwrite.errors import ConfigError
from everwrite.server.config import SETTINGS, Certs, NodeConfig, Peer, is_loopback, load, split_address, to_toml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**arguments)
    return str(caught.value)


def test_without_settings_the_defaults_hold() -> None:
    loaded = load()
    assert loaded.config == NodeConfig()
    assert (loaded.config.region, loaded.config.node, loaded.config.durability) == ("local", "local-0", "always")
    assert (loaded.config.redis_port, loaded.config.http_port, loaded.config.peer_port) == (7379, 7380, 7381)
    assert set(loaded.origins.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(file: Path) -> None:
    file.write_text('region = "f"\nredis_port = 1\nhttp_port = 2\npeer_port = 3\n')
    environment = {"EVERWRITE_REDIS_PORT": "11", "EVERWRITE_HTTP_PORT": "12", "PATH": "/bin"}
    loaded = load(file, flags={"redis_port": "21", "insecure_bind": True}, environment=environment)
    config = loaded.config
    assert (config.redis_port, config.http_port, config.peer_port, config.region) == (21, 12, 3, "f")
    assert config.insecure_bind
    assert loaded.origins["redis_port"] == "--redis-port"
    assert loaded.origins["http_port"] == "EVERWRITE_HTTP_PORT"
    assert loaded.origins["peer_port"] == f"file {file}"
    assert loaded.origins["durability"] == "default"


def test_the_node_is_named_after_its_region_unless_told() -> None:
    assert load(flags={"region": "eu-west"}).config.node == "eu-west-0"
    assert load(flags={"region": "eu-west", "node": "n7"}).config.node == "n7"


def test_paths_in_a_file_start_at_its_folder_and_others_do_not(file: Path) -> None:
    file.write_text('data = "d"\n[certs]\nca = "ca.pem"\ncert = "/abs/c.pem"\nkey = "c.key"\n')
    folder = file.parent
    config = load(file).config
    assert config.data == folder / "d"
    assert config.certs == Certs(folder / "ca.pem", Path("/abs/c.pem"), folder / "c.key")
    assert load(file, flags={"data": "e"}, environment={"EVERWRITE_CERTS_KEY": "k"}).config.data == Path("e")


def test_peers_from_file_and_from_text(file: Path) -> None:
    certs = {"certs.ca": "a", "certs.cert": "b", "certs.key": "c"}
    file.write_text(
        '[[peers]]\nregion = "apac"\naddress = "127.0.0.1:7603"\n'
        '[[peers]]\nregion = "eu-west"\nnode = "eu-west-1"\naddress = "[::1]:7503"\n'
    )
    peers = Peer("apac", "127.0.0.1:7603"), Peer("eu-west", "[::1]:7503", "eu-west-1")
    assert load(file, flags=certs).config.peers == peers
    assert (peers[1].host, peers[1].port) == ("::1", 7503)
    text = "apac=127.0.0.1:7603, eu-west/eu-west-1=[::1]:7503"
    assert load(flags=certs, environment={"EVERWRITE_PEERS": text}).config.peers == peers


@pytest.mark.parametrize(
    ("setting", "shown", "allowed"),
    [
        ('region = "EU"', 'region = "EU"', "1 to 63 of a-z"),
        ('region = "-a"', 'region = "-a"', "no '-' at either end"),
        ('region = "a\\n"', 'region = "a\\n"', "1 to 63 of a-z"),
        (f'node = "{"a" * 64}"', 'node = "aaaa', "1 to 63 of a-z"),
        ("cluster = 1", "cluster = 1", "1 to 63 of a-z"),
        ("redis_port = 65536", "redis_port = 65536", "a whole number from 0 to 65535"),
        ("redis_port = -1", "redis_port = -1", "a whole number from 0 to 65535"),
        ('redis_port = "7379"', 'redis_port = "7379"', "a whole number from 0 to 65535"),
        ("redis_port = true", "redis_port = true", "a whole number from 0 to 65535"),
        ("redis_port = 1.5", "redis_port = 1.5", "a whole number from 0 to 65535"),
        ("redis_port = 1979-05-27", "redis_port = datetime.date(1979", "a whole number from 0 to 65535"),
        ('durability = "allways"', 'durability = "allways"', "one of always, interval, os"),
        ("insecure_bind = 1", "insecure_bind = 1", "true or false"),
        ('host = "a b"', 'host = "a b"', "a host name or an IP address"),
        ('host = ""', 'host = ""', "a host name or an IP address"),
        ('data = ""', 'data = ""', "a path"),
        ("data = []", "data = []", "a path"),
        ("max_clock_drift_ms = 0", "max_clock_drift_ms = 0", "a whole number from 1 to"),
        ("memtable_bytes = 10", "memtable_bytes = 10", "a whole number from 65536 to"),
        ("log_keep_bytes = 99999999999999999999", "log_keep_bytes = 9999", "a whole number from 1048576 to"),
        ("certs = 3", "certs = 3", "a table with ca, cert and key"),
        ("peers = 3", "peers = 3", "a list of tables"),
        ("[certs]\nca = 1", "certs.ca = 1", "a path"),
        ('[[peers]]\nregion = "a"\naddress = "h"', 'peers[0].address = "h"', "HOST:PORT, or [IPv6]:PORT"),
        ('[[peers]]\nregion = "a"\naddress = "h:0"', 'peers[0].address = "h:0"', "HOST:PORT, or [IPv6]:PORT"),
        ('[[peers]]\nregion = "A"\naddress = "h:1"', 'peers[0].region = "A"', "1 to 63 of a-z"),
    ],
)
def test_a_wrong_value_is_named_with_file_key_value_and_what_is_allowed(
    file: Path, setting: str, shown: str, allowed: str
) -> None:
    file.write_text(setting + "\n")
    message = refusal(file=file)
    assert message.startswith(f"{file}: {shown}")
    assert ": must be " in message
    assert allowed in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "path", "meant"),
    [
        ("redis_prot = 1", "redis_prot", "redis_port"),
        ("[certs]\ncrt = 1", "certs.crt", "cert"),
        ('[[peers]]\nregion = "a"\naddress = "h:1"\nnodes = "x"', "peers[0].nodes", "node"),
        ("[certz]\nca = 1", "certz", "certs"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(file: Path, setting: str, path: str, meant: str) -> None:
    file.write_text(setting + "\n")
    assert f"{file}: {path}: there is no such setting; did you mean {meant}?" in refusal(file=file)


def test_an_unknown_key_like_no_other_lists_what_is_known(file: Path) -> None:
    file.write_text("zzz = 1\n")
    message = refusal(file=file)
    assert "did you mean" not in message
    assert "known are: cluster, region" in message


def test_every_wrong_setting_is_reported_at_once(file: Path) -> None:
    file.write_text("redis_port = -1\nfoo = 2\n")
    message = refusal(
        file=file, flags={"http_port": "x"}, environment={"EVERWRITE_REGION": "X", "EVERWRITE_REGON": "x"}
    )
    lines = message.splitlines()
    assert len(lines) == 5
    assert lines[2].startswith('environment: EVERWRITE_REGION = "X": must be 1 to 63')
    assert lines[3].startswith("environment: EVERWRITE_REGON: there is no such setting; did you mean EVERWRITE_REGION?")
    assert lines[4].startswith('command line: --http-port = "x": must be a whole number')


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'region = "us-east"\nredis_port =', "line 2, at the end"),
        (b'region = "us-east"\nredis_port =\n', "line 2, column 13"),
        (b"\n[certs\nca = 1\n", "line 2, column 7"),
        (b'region = "us-ea', "line 1, at the end"),
        (b"peers = [\n  1,\n", "line 2, at the end"),
        (b"a = 1\na = 2\n", "line 2"),
        (b'region = "x"\n# \xff\n', "line 2"),
        (b"a = " + b"[" * 20_000, "nested too deeply"),
    ],
)
def test_a_half_written_file_is_refused_with_file_and_line(file: Path, content: bytes, where: str) -> None:
    file.write_bytes(content)
    message = refusal(file=file)
    assert message.startswith(f"{file}: ")
    assert where in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(file=tmp_path / "absent.toml")
    assert str(tmp_path) in refusal(file=tmp_path)


def test_a_huge_file_is_refused_unread(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    assert "is no configuration file" in refusal(file=file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_host_that_others_reach_needs_a_word(host: str) -> None:
    message = refusal(flags={"host": host})
    assert "no authentication yet" in message
    assert "insecure_bind" in message
    assert load(flags={"host": host, "insecure_bind": True}).config.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_hosts_are_fine(host: str) -> None:
    assert is_loopback(host)
    assert load(flags={"host": host}).config.host == host


def test_listeners_need_different_ports() -> None:
    message = refusal(flags={"redis_port": "7380"})
    assert message.startswith("command line: --redis-port: 7380 is also http_port")
    config = load(flags={"redis_port": "0", "http_port": "0", "peer_port": "0"}).config
    assert config.peer_port == 0


def test_peers_need_certificates_and_certificates_all_three_files() -> None:
    peer = "apac=127.0.0.1:1"
    assert "only with certificates" in refusal(flags={"peers": peer})
    message = refusal(flags={"peers": peer, "certs.cert": "c.pem"})
    assert "needs certs.ca and certs.key too" in message


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        ("local=h:1", "entry 0 (local) is this node itself"),
        ("local/local-0=h:1", "entry 0 (local/local-0) is this node itself"),
        ("a=h:1,a=h:2", "entry 1 (a) is there twice"),
        ("a", "REGION=HOST:PORT"),
        ("a=h:99999", "REGION=HOST:PORT"),
        ("a/=h:1", "REGION=HOST:PORT"),
        ("A=h:1", "REGION=HOST:PORT"),
    ],
)
def test_peers_that_make_no_sense_are_refused(peers: str, text: str) -> None:
    flags = {"peers": peers, "certs.ca": "a", "certs.cert": "b", "certs.key": "c"}
    assert text in refusal(flags=flags)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    assert "is a file: must be a folder" in refusal(flags={"data": str(tmp_path / "f")})


def test_wrong_configuration_creates_nothing(tmp_path: Path) -> None:
    refusal(flags={"data": str(tmp_path / "new" / "data"), "redis_port": "x"})
    load(flags={"data": str(tmp_path / "new" / "data")})
    assert list(tmp_path.iterdir()) == []


def test_variables_that_a_service_called_everwrite_gets_in_kubernetes_are_not_ours() -> None:
    environment = {
        "EVERWRITE_PORT": "tcp://10.0.0.1:7379",
        "EVERWRITE_SERVICE_HOST": "10.0.0.1",
        "EVERWRITE_SERVICE_PORT_REDIS": "7379",
        "EVERWRITE_PORT_7379_TCP_ADDR": "10.0.0.1",
        "EVERWRITE_US_EAST_SERVICE_PORT": "7379",
        "EVERWRITE_CONFIG": "x.toml",
    }
    assert load(environment=environment).config == NodeConfig()


@pytest.mark.parametrize(
    "address", ["", "h", ":1", "h:", "h:x", "h:-1", "h:65536", "h:1 ", "::1:1", "[h]:1", "[::1]", "h:\u0663"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"must|no IPv6"):
        split_address(address)


def test_each_setting_has_a_flag_a_variable_and_a_description() -> None:
    assert (
        len({setting.flag for setting in SETTINGS}) == len({setting.variable for setting in SETTINGS}) == len(SETTINGS)
    )
    assert all(setting.description and setting.allowed for setting in SETTINGS)


def test_written_configuration_reads_back_as_it_was(file: Path) -> None:
    config = NodeConfig(
        region="eu-west",
        data=Path('/d "quoted" \\ \n \x7f \u00e9'),
        insecure_bind=True,
        redis_port=0,
        certs=Certs(Path("/a"), Path("/b"), Path("/c")),
        peers=(Peer("apac", "h:1"), Peer("us-east", "[::1]:2", "n1")),
    )
    file.write_text(to_toml(config), encoding="utf-8")
    assert load(file).config == config
    loaded = load(file, flags={"redis_port": "5"})
    file.write_text(to_toml(loaded.config, loaded.origins), encoding="utf-8")
    assert "redis_port = 5  # --redis-port\n" in file.read_text(encoding="utf-8")
    assert load(file).config == loaded.config
