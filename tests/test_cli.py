"""The command line: exit status, output, and that its page lists every setting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from everwrite.server import cli
from everwrite.server.config import SETTINGS
from tests.support import ROOT

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


class Command:
    """The command line, run in this process, in a folder of its own and without settings from outside."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "100")
        for name in [name for name in os.environ if name.startswith("EVERWRITE_")]:
            monkeypatch.delenv(name)

    def run(self, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["everwrite", *map(str, arguments)])
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as caught:
                cli.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, *self._capsys.readouterr()

    def output(self, *arguments: str | Path, **environment: str) -> str:
        """What a command prints that must succeed."""
        status, out, err = self.run(*arguments, **environment)
        assert (status, err) == (0, "")
        return out

    def refusal(self, expected: int, *arguments: str | Path, **environment: str) -> str:
        """The message of a command that must fail with this status, and must leave nothing behind."""
        before = sorted(self.folder.rglob("*"))
        status, out, err = self.run(*arguments, **environment)
        assert (status, out) == (expected, ""), err
        assert sorted(self.folder.rglob("*")) == before
        return err


@pytest.fixture
def ew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def test_version(ew: Command) -> None:
    assert ew.output("version").startswith("everwrite ")
    assert ew.output("--version").startswith("everwrite")
    assert set(json.loads(ew.output("version", "--output=json"))) == {"everwrite", "python"}


@pytest.mark.parametrize(
    "command", [(), ("serve",), ("lab",), ("lab", "start"), ("certs", "node"), ("config", "show"), ("version",)]
)
def test_every_command_has_help(ew: Command, command: tuple[str, ...]) -> None:
    text = ew.output(*command, "--help")
    assert "Usage:" in text


def test_help_imports_nothing_slow() -> None:
    for command in ("--help", "lab"):
        program = (
            "import sys\nfrom everwrite.server import cli\n"
            f"try:\n cli.cli.main(['lab', '--help'] if {command!r} == 'lab' else ['--help'], standalone_mode=True)\n"
            "except SystemExit:\n pass\n"
            "slow = {'trio', 'rich', 'cryptography', 'starlette', 'msgspec', 'numpy'} & set(sys.modules)\n"
            "assert not slow, slow\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_serve_lists_every_setting(ew: Command) -> None:
    text = ew.output("serve", "--help")
    assert [setting.flag for setting in SETTINGS if setting.flag + " " not in text] == []


def test_config_show_says_where_values_come_from(ew: Command, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('region = "apac"\nhttp_port = 1\n')
    text = ew.output("config", "show", "--origin", "--config", file, "--redis-port=5", EVERWRITE_HTTP_PORT="6")
    lines = text.splitlines()
    assert f'region = "apac"  # file {file}' in lines
    assert "redis_port = 5  # --redis-port" in lines
    assert "http_port = 6  # EVERWRITE_HTTP_PORT" in lines
    assert "peer_port = 7381  # default" in lines


def test_config_show_as_json(ew: Command) -> None:
    shown = json.loads(ew.output("config", "show", "--output=json", EVERWRITE_REGION="apac"))
    assert shown["node"] == "apac-0"
    both = json.loads(ew.output("config", "show", "--output=json", "--origin", EVERWRITE_REGION="apac"))
    assert both["settings"] == shown
    assert both["origins"]["region"] == "EVERWRITE_REGION"


def test_config_show_is_a_file_that_gives_the_same(ew: Command, tmp_path: Path) -> None:
    flags = ["--peer=apac=127.0.0.1:1", "--peer=eu/eu-0=[::1]:2", "--certs-ca=/a", "--certs-cert=/b", "--certs-key=/c"]
    first = ew.output("config", "show", "--data=/d", *flags)
    (tmp_path / "node.toml").write_text(first)
    assert ew.output("config", "show", EVERWRITE_CONFIG="node.toml") == first


@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_wrong_settings_end_with_status_2(ew: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "node.toml"
    file.write_text("redis_prot = 1\n")
    assert f"{file}: redis_prot: there is no such setting" in ew.refusal(2, *command, "--config", file)
    file.write_text('data = "elsewhere"\nregion = ')
    assert f"{file}: line 2" in ew.refusal(2, *command, "--config", file)
    assert "can't be read" in ew.refusal(2, *command, "--config", "absent.toml")
    assert '--redis-port = "x": must be' in ew.refusal(2, *command, "--redis-port=x")
    assert "EVERWRITE_DATA: " in ew.refusal(2, *command, EVERWRITE_DATA=str(file))
    assert "No such option" in ew.refusal(2, *command, "--redis-prot=1")
    assert "no authentication yet" in ew.refusal(2, *command, "--host=0.0.0.0")


def test_serve_checks_its_certificates_first(ew: Command, tmp_path: Path) -> None:
    ew.output("certs", "init", "c")
    assert ew.output("certs", "node", "c", "--region=apac") == "c/apac-0.pem\nc/apac-0.key\n"
    flags = ["--certs-ca=c/ca.pem", "--certs-cert=c/apac-0.pem", "--certs-key=c/apac-0.key"]
    message = ew.refusal(2, "serve", "--region=eu-west", *flags)
    assert "is for everwrite://everwrite/apac/apac-0" in message
    (tmp_path / "c" / "apac-0.key").write_text("garbage")
    assert "c/apac-0.key" in ew.refusal(2, "serve", "--region=apac", *flags)


def test_certificates_are_kept_without_force(ew: Command) -> None:
    assert ew.output("certs", "init", "c", "--cluster=shop") == "c/ca.pem\nc/ca.key\n"
    assert "exists already" in ew.refusal(2, "certs", "init", "c")
    assert "can't be read" in ew.refusal(2, "certs", "node", "d", "--region=apac")
    assert "must be 1 to 63" in ew.refusal(2, "certs", "node", "c", "--region=APAC")
    ew.output("certs", "init", "c", "--force")


def test_lab_commands_without_a_lab_end_with_status_4(ew: Command) -> None:
    for command in (["status"], ["heal"], ["cut", "us-east", "apac"], ["kill", "apac"], ["start", "apac"]):
        assert "everwrite-lab: no lab runs here" in ew.refusal(4, "lab", *command)
    assert "elsewhere: no lab runs here" in ew.refusal(4, "lab", "--data=elsewhere", "status")
    assert "elsewhere: no lab runs here" in ew.refusal(4, "lab", "status", "--data=elsewhere")


def test_a_lab_that_cannot_be_is_refused_before_anything_is_made(ew: Command) -> None:
    assert "--nodes 4: must be from 1 to 3" in ew.refusal(2, "lab", "--nodes=4")
    assert "--base-port 65535" in ew.refusal(2, "lab", "--base-port=65535")
    assert "name two regions" in ew.refusal(2, "lab", "heal", "apac")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "everwrite", "config", "show"]
    outcome = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert outcome.returncode == 1
    assert outcome.stderr == b""


def test_the_page_has_every_setting_as_it_is() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(--[\w-]+)` \| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (
            setting.path,
            setting.flag,
            setting.variable,
            f"`{setting.default}`" if setting.default else "none",
            setting.allowed,
            setting.description,
        )
        for setting in SETTINGS
    ]


def test_the_page_has_every_exit_status() -> None:
    statuses = {value for name, value in vars(cli).items() if name.startswith("EXIT_")} | {0}
    section = PAGE[PAGE.index("## Exit status") :]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == statuses
