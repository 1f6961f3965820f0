"""The command line: exit status, output, and that its page lists every setting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from everwrite.server.config import SETTINGS
from tests.support import ROOT

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m everwrite`, with nothing of ours from the environment of the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EVERWRITE_")}
    if "PYTHONPATH" in clean:
        parts = clean["PYTHONPATH"].split(os.pathsep)
        clean["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in parts)
    return subprocess.run(
        [sys.executable, "-m", "everwrite", *map(str, arguments)],
        cwd=cwd,
        env={**clean, "COLUMNS": "100", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(status: int, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """The message of a command that must fail with this status, and must leave nothing behind."""
    before = sorted(cwd.rglob("*"))
    outcome = run(*arguments, cwd=cwd, **environment)
    assert outcome.returncode == status, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert sorted(cwd.rglob("*")) == before
    return outcome.stderr


def test_version(tmp_path: Path) -> None:
    assert run("version", cwd=tmp_path).stdout.startswith("everwrite ")
    assert set(json.loads(run("version", "--output=json", cwd=tmp_path).stdout)) == {"everwrite", "python"}


@pytest.mark.parametrize(
    "command", [(), ("serve",), ("lab",), ("lab", "start"), ("certs", "node"), ("config", "show"), ("version",)]
)
def test_every_command_has_help(tmp_path: Path, command: tuple[str, ...]) -> None:
    outcome = run(*command, "--help", cwd=tmp_path)
    assert outcome.returncode == 0
    assert "Usage:" in outcome.stdout


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    for command in ("--help", "lab"):
        program = (
            "import sys\nfrom everwrite.server import cli\n"
            f"try:\n cli.cli.main(['lab', '--help'] if {command!r} == 'lab' else ['--help'], standalone_mode=True)\n"
            "except SystemExit:\n pass\n"
            "slow = {'trio', 'rich', 'cryptography', 'starlette', 'msgspec', 'numpy'} & set(sys.modules)\n"
            "assert not slow, slow\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_serve_lists_every_setting(tmp_path: Path) -> None:
    text = run("serve", "--help", cwd=tmp_path).stdout
    assert [setting.flag for setting in SETTINGS if setting.flag + " " not in text] == []


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('region = "apac"\nhttp_port = 1\n')
    outcome = run(
        "config", "show", "--origin", "--config", file, "--redis-port=5", cwd=tmp_path, EVERWRITE_HTTP_PORT="6"
    )
    assert outcome.returncode == 0
    lines = outcome.stdout.splitlines()
    assert f'region = "apac"  # file {file}' in lines
    assert "redis_port = 5  # --redis-port" in lines
    assert "http_port = 6  # EVERWRITE_HTTP_PORT" in lines
    assert "peer_port = 7381  # default" in lines


def test_config_show_as_json(tmp_path: Path) -> None:
    shown = json.loads(run("config", "show", "--output=json", cwd=tmp_path, EVERWRITE_REGION="apac").stdout)
    assert shown["node"] == "apac-0"
    both = json.loads(run("config", "show", "--output=json", "--origin", cwd=tmp_path, EVERWRITE_REGION="apac").stdout)
    assert both["settings"] == shown
    assert both["origins"]["region"] == "EVERWRITE_REGION"


def test_config_show_is_a_file_that_gives_the_same(tmp_path: Path) -> None:
    flags = ["--peer=apac=127.0.0.1:1", "--peer=eu/eu-0=[::1]:2", "--certs-ca=/a", "--certs-cert=/b", "--certs-key=/c"]
    first = run("config", "show", "--data=/d", *flags, cwd=tmp_path).stdout
    (tmp_path / "node.toml").write_text(first)
    assert run("config", "show", cwd=tmp_path, EVERWRITE_CONFIG="node.toml").stdout == first


@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_wrong_settings_end_with_status_2_and_make_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "node.toml"
    file.write_text("redis_prot = 1\n")
    assert f"{file}: redis_prot: there is no such setting" in refusal(2, *command, "--config", file, cwd=tmp_path)
    file.write_text('data = "elsewhere"\nregion = ')
    assert f"{file}: line 2" in refusal(2, *command, "--config", file, cwd=tmp_path)
    assert "can't be read" in refusal(2, *command, "--config", "absent.toml", cwd=tmp_path)
    assert '--redis-port = "x": must be' in refusal(2, *command, "--redis-port=x", cwd=tmp_path)
    assert "EVERWRITE_DATA: " in refusal(2, *command, cwd=tmp_path, EVERWRITE_DATA=str(file))
    assert "No such option" in refusal(2, *command, "--redis-prot=1", cwd=tmp_path)
    assert "no authentication yet" in refusal(2, *command, "--host=0.0.0.0", cwd=tmp_path)


def test_serve_checks_its_certificates_first(tmp_path: Path) -> None:
    assert run("certs", "init", "c", cwd=tmp_path).returncode == 0
    assert run("certs", "node", "c", "--region=apac", cwd=tmp_path).stdout == "c/apac-0.pem\nc/apac-0.key\n"
    flags = ["--certs-ca=c/ca.pem", "--certs-cert=c/apac-0.pem", "--certs-key=c/apac-0.key"]
    message = refusal(2, "serve", "--region=eu-west", *flags, cwd=tmp_path)
    assert "is for everwrite://everwrite/apac/apac-0" in message
    (tmp_path / "c" / "apac-0.key").write_text("garbage")
    assert "c/apac-0.key" in refusal(2, "serve", "--region=apac", *flags, cwd=tmp_path)


def test_certificates_are_kept_without_force(tmp_path: Path) -> None:
    assert run("certs", "init", "c", "--cluster=shop", cwd=tmp_path).stdout == "c/ca.pem\nc/ca.key\n"
    assert "exists already" in refusal(2, "certs", "init", "c", cwd=tmp_path)
    assert "can't be read" in refusal(2, "certs", "node", "d", "--region=apac", cwd=tmp_path)
    assert "must be 1 to 63" in refusal(2, "certs", "node", "c", "--region=APAC", cwd=tmp_path)
    assert run("certs", "init", "c", "--force", cwd=tmp_path).returncode == 0


def test_lab_commands_without_a_lab_end_with_status_4(tmp_path: Path) -> None:
    for command in (["status"], ["heal"], ["cut", "us-east", "apac"], ["kill", "apac"], ["start", "apac"]):
        assert "everwrite-lab: no lab runs here" in refusal(4, "lab", *command, cwd=tmp_path)
    assert "elsewhere: no lab runs here" in refusal(4, "lab", "--data=elsewhere", "status", cwd=tmp_path)
    assert "elsewhere: no lab runs here" in refusal(4, "lab", "status", "--data=elsewhere", cwd=tmp_path)


def test_a_lab_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    assert "--nodes 2: must be 1" in refusal(2, "lab", "--nodes=2", cwd=tmp_path)
    assert "--base-port 65535" in refusal(2, "lab", "--base-port=65535", cwd=tmp_path)
    assert "name two regions" in refusal(2, "lab", "heal", "apac", cwd=tmp_path)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
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
    from everwrite.server import cli

    statuses = {value for name, value in vars(cli).items() if name.startswith("EXIT_")} | {0}
    section = PAGE[PAGE.index("## Exit status") :]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == statuses
