"""The command `everwrite`.

Exit status, the same for all commands:
0 done, also when it was so already; 1 failed; 2 wrong usage or configuration, nothing was changed;
3 a port, the data folder or the lab's folder is in use by another process; 4 no lab runs on the folder;
5 a store is damaged, whether or not it was salvaged; 130 ended by a second Ctrl-C.

Whatever takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from everwrite.errors import ConfigError, EverwriteError, LockedError, NotRunningError, PortInUseError, first_of

if TYPE_CHECKING:
    from everwrite.backup import BackupInfo
    from everwrite.server.config import Loaded
    from everwrite.server.lab_control import Answer

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_IN_USE = 3
EXIT_NOT_RUNNING = 4
EXIT_DAMAGED = 5
EXIT_INTERRUPTED = 130

DEFAULT_LAB = "everwrite-lab"
# `start` waits until a node is ready, which the lab itself bounds; everything else is a matter of moments.
LAB_SECONDS_MAX = 30.0
LAB_START_SECONDS_MAX = 150.0

Command = TypeVar("Command", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the command line; ends the process with a status as the module's docstring says."""
    try:
        # Returns what `ctx.exit` was given.
        status = cli.main(standalone_mode=False) or 0
    except click.exceptions.Exit as exit_:
        status = exit_.exit_code
    except click.ClickException as error:
        error.show()
        status = EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILED
    except EverwriteError as error:
        click.echo(f"everwrite: {error}", err=True)
        status = _status_of(error)
    sys.exit(status)


def _status_of(error: EverwriteError) -> int:
    match error:
        case NotRunningError():
            return EXIT_NOT_RUNNING
        case LockedError() | PortInUseError():
            return EXIT_IN_USE
        case ConfigError():
            return EXIT_USAGE
    return EXIT_FAILED


class _NodeCommand(click.Command):
    """A command with an option for each setting of a node, which are found out only when it is used."""

    _complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own parameters, then the settings."""
        if not self._complete:
            self.params.extend(_setting_options())
            self._complete = True
        return super().get_params(ctx)


output_option = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print the result.",
)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.invoke(version)
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
def cli() -> None:
    """Everwrite: a key-value database that accepts writes in every region at once and converges."""


@cli.command()
@output_option
def version(output: str) -> None:
    """Print the version."""
    import platform

    from everwrite.server.version import software_version

    number = software_version()
    python = platform.python_version()
    click.echo(
        json.dumps({"everwrite": number, "python": python})
        if output == "json"
        else f"everwrite {number}, Python {python}"
    )


# ---- serve and config ----


def _setting_options() -> list[click.Parameter]:
    """The options that `serve` and `config show` share: one for each setting."""
    from everwrite.server.config import SETTINGS

    options: list[click.Parameter] = [
        click.Option(
            ["--config", "file"],
            type=click.Path(path_type=Path),
            envvar="EVERWRITE_CONFIG",
            help="A file of settings in TOML. Flags and EVERWRITE_* variables win over it.",
        )
    ]
    for setting in SETTINGS:
        attributes: dict[str, Any] = {"help": setting.description, "metavar": setting.allowed.upper()}
        if setting.path == "insecure_bind":
            attributes |= {"is_flag": True, "default": None, "metavar": None}
        elif setting.path == "peers":
            attributes |= {"multiple": True, "metavar": "REGION[/NODE]=HOST:PORT"}
        else:
            attributes["metavar"] = _metavar(setting.allowed)
            attributes["help"] += f" [default: {setting.default}]" if setting.default else ""
        options.append(click.Option([setting.flag, setting.path.replace(".", "__")], **attributes))
    return options


def _metavar(allowed: str) -> str:
    if allowed.startswith("one of "):
        return allowed.removeprefix("one of ").replace(", ", "|")
    return {"a whole": "NUMBER", "a path": "PATH", "a host ": "HOST", "1 to 63": "NAME"}.get(allowed[:7], "TEXT")


def _loaded(file: Path | None, options: dict[str, Any]) -> Loaded:
    from everwrite.server.config import load

    options["peers"] = ",".join(options["peers"]) or None
    flags = {name.replace("__", "."): value for name, value in options.items() if value is not None}
    return load(file, flags=flags, environment=os.environ)


@cli.command(cls=_NodeCommand)
@click.option(
    "--parent-pid",
    type=int,
    hidden=True,
    help="End at once when this process, which must be the parent, ends.",
)
def serve(parent_pid: int | None, file: Path | None, **options: Any) -> None:
    """Run one node: Redis protocol, HTTP, and replication with its peers.

    Works without configuration. SIGTERM or Ctrl-C drains within 10 s, a second one ends at once.
    """
    if parent_pid is not None:
        from everwrite.server.lab_process import end_with_parent

        end_with_parent(parent_pid)
    config = _loaded(file, options).config
    from everwrite.server.certs import check_certs

    check_certs(config)
    _serve(config)


def _serve(config: Any) -> None:
    import logging

    import trio

    from everwrite.server.node import run_node

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        trio.run(run_node, config)
    except* EverwriteError as group:
        error = first_of(group)
    else:
        return
    raise error


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command(cls=_NodeCommand)
@click.option("--origin", is_flag=True, help="Say for each setting where its value comes from.")
@output_option
def show(origin: bool, output: str, file: Path | None, **options: Any) -> None:
    """Print the settings that `serve` would use with the same flags, environment and file."""
    loaded = _loaded(file, options)
    from everwrite.server.config import to_toml

    if output == "text":
        click.echo(to_toml(loaded.config, loaded.origins if origin else None), nl=False)
        return
    import msgspec

    values = msgspec.to_builtins(loaded.config, enc_hook=str)
    click.echo(json.dumps({"settings": values, "origins": loaded.origins} if origin else values, indent=2))


# ---- certs ----


@cli.group()
def certs() -> None:
    """Make the certificates with which nodes recognise each other."""


folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
force_option = click.option("--force", is_flag=True, help="Replace what is there.")


@certs.command("init")
@folder_argument
@click.option("--cluster", default="everwrite", show_default=True, help="Name of the cluster.")
@force_option
def certs_init(folder: Path, cluster: str, force: bool) -> None:
    """Make the authority of a cluster: ca.pem and ca.key in DIR.

    Every node needs ca.pem. Keep ca.key off the nodes: who has it can make more of them.
    """
    from everwrite.server.certs import init_authority

    for path in init_authority(folder, cluster=cluster, force=force):
        click.echo(path)


@certs.command("node")
@folder_argument
@click.option("--region", required=True, help="Region of the node.")
@click.option("--node", help="Id of the node.  [default: <region>-0]")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="A name or address of the node; can be repeated.  [default: localhost, 127.0.0.1, ::1]",
)
@click.option("--days", type=click.IntRange(1, 36500), default=825, show_default=True, help="How long it is valid.")
@force_option
def certs_node(folder: Path, region: str, node: str | None, hosts: tuple[str, ...], days: int, force: bool) -> None:
    """Make a node's certificate, signed by the authority in DIR: NODE.pem and NODE.key there."""
    from everwrite.server.certs import DEFAULT_HOSTS, make_node

    made = make_node(
        folder, region=region, node=node or f"{region}-0", hosts=hosts or DEFAULT_HOSTS, days=days, force=force
    )
    click.echo(made.cert)
    click.echo(made.key)


# ---- stores ----

store_argument = click.argument("path", metavar="STORE", type=click.Path(path_type=Path))
target_argument = click.argument("to", metavar="TO", type=click.Path(path_type=Path))


@cli.command()
@store_argument
@click.option(
    "--salvage",
    "to",
    metavar="TO",
    type=click.Path(path_type=Path),
    help="Copy all that can be read to a new store in this folder.",
)
@output_option
@click.pass_context
def doctor(ctx: click.Context, path: Path, to: Path | None, output: str) -> None:
    """Say what is wrong with the closed store in the folder STORE, which is not changed.

    Reads every file, names what is damaged and what is lost by it. With --salvage, says which keys may show an older
    value than they had, or lack a part. Ends with status 5 when there is damage.
    """
    from everwrite.doctor import diagnose, salvage

    report, saved = salvage(path, to) if to is not None else (diagnose(path), None)
    if output == "json":
        click.echo(json.dumps(report.to_dict() | ({"salvaged": saved.to_dict()} if saved else {}), indent=2))
    else:
        click.echo(report)
        if saved:
            click.echo(saved)
    ctx.exit(0 if report.ok else EXIT_DAMAGED)


@cli.command()
@store_argument
@target_argument
@output_option
def backup(path: Path, to: Path, output: str) -> None:
    """Back up the closed store in the folder STORE to the folder TO, which must not be there.

    A program that has a store open backs it up with `Database.backup`.
    """
    import everwrite

    with everwrite.open(path, create=False) as db:
        _tell_backup(db.backup(to), to, output)


@cli.command()
@click.argument("path", metavar="BACKUP", type=click.Path(path_type=Path))
@target_argument
@output_option
def restore(path: Path, to: Path, output: str) -> None:
    """Make a store in the folder TO, which must not be there, from the backup in the folder BACKUP.

    It is a store of its own, with an origin of its own: it can be merged with the one that was backed up.
    """
    import everwrite

    _tell_backup(everwrite.restore(path, to), to, output)


def _tell_backup(info: BackupInfo, to: Path, output: str) -> None:
    files, size = len(info.files), info.bytes
    if output == "json":
        click.echo(json.dumps({"path": str(to), "files": files, "bytes": size, "moment_ms": info.moment_ms}))
    else:
        click.echo(f"{to}: {files} files, {size} bytes")


# ---- lab ----


def data_option(command: Command) -> Command:
    """The lab's folder. The group has it too, so that it may stand before the command's name."""
    return click.option(
        "--data", metavar="DIR", type=click.Path(path_type=Path), help=f"Folder of the lab.  [default: {DEFAULT_LAB}]"
    )(command)


@cli.group(invoke_without_command=True)
@data_option
@click.option("--nodes", type=int, default=1, show_default=True, help="Nodes in each region, 1 to 3.")
@click.option(
    "--base-port",
    type=int,
    default=7400,
    show_default=True,
    help="Region i, node j serves Redis at base+100*i+10*j+1, HTTP at the next port, peers at the one after.",
)
@click.option("--wan/--no-wan", default=True, help="Delay the links between regions as a wide area network does.")
@click.pass_context
def lab(ctx: click.Context, data: Path | None, nodes: int, base_port: int, wan: bool) -> None:
    """Run three regions on this machine: us-east, eu-west and apac.

    Without a command it starts them, stays in the foreground, and drains on Ctrl-C; started again on the same
    folder it has all the data. The commands below are for another terminal.
    """
    ctx.obj = data
    if ctx.invoked_subcommand is not None:
        return
    from everwrite.server.lab_plan import Plan

    plan = Plan(base_port=base_port, nodes=nodes, wan=wan)
    import trio

    from everwrite.server.lab import Lab, LabOptions
    from everwrite.server.lab_view import LiveView, PlainView

    view = LiveView() if sys.stdout.isatty() else PlainView()
    try:
        ctx.exit(trio.run(Lab(LabOptions(_folder(data), plan), view).run))
    finally:
        view.close()


def _folder(data: Path | None) -> Path:
    return data or Path(DEFAULT_LAB)


def _call(ctx: click.Context, data: Path | None, *request: str, timeout_seconds: float = LAB_SECONDS_MAX) -> Answer:
    from everwrite.server.lab_control import call

    return call(_folder(data or ctx.obj), request[0], list(request[1:]), timeout_seconds=timeout_seconds)


@lab.command()
@click.argument("region")
@click.argument("other")
@data_option
@click.pass_context
def cut(ctx: click.Context, region: str, other: str, data: Path | None) -> None:
    """Cut the links between two regions: nothing passes until they are healed."""
    click.echo(_call(ctx, data, "cut", region, other).message)


@lab.command()
@click.argument("regions", nargs=-1, metavar="[REGION OTHER]")
@data_option
@click.pass_context
def heal(ctx: click.Context, regions: tuple[str, ...], data: Path | None) -> None:
    """Heal the links between two regions, or all links."""
    if len(regions) not in (0, 2):
        raise click.UsageError("name two regions, or none to heal all links")
    click.echo(_call(ctx, data, "heal", *regions).message)


@lab.command()
@click.argument("node", metavar="REGION[/NODE]")
@data_option
@click.pass_context
def kill(ctx: click.Context, node: str, data: Path | None) -> None:
    """Kill a region's nodes, or one of them (counted from 0), with SIGKILL."""
    click.echo(_call(ctx, data, "kill", node).message)


@lab.command()
@click.argument("node", metavar="REGION[/NODE]")
@data_option
@click.pass_context
def start(ctx: click.Context, node: str, data: Path | None) -> None:
    """Start a region's nodes, or one of them, and wait until they are ready."""
    click.echo(_call(ctx, data, "start", node, timeout_seconds=LAB_START_SECONDS_MAX).message)


@lab.command()
@data_option
@output_option
@click.pass_context
def status(ctx: click.Context, data: Path | None, output: str) -> None:
    """Show the nodes and the links."""
    found = _call(ctx, data, "status").status
    import msgspec

    if found is None:
        raise EverwriteError("the lab answered without its status: is it of another version?")
    if output == "json":
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    from everwrite.server.lab_view import status_text

    click.echo(status_text(found))


if __name__ == "__main__":
    main()
