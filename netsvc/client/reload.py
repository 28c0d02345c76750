"""`netsvc reload`: has the process that was started with a configuration file read it again."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress

import click

from netsvc.client.failure import ClientError
from netsvc.host.control import LONGEST_ANSWER, Answer, control_names, peer_user, read_answer
from netsvc.text import escape, plain

__all__ = ["ask", "command"]

#: Seconds. A reload starts every worker anew, and an endpoint may take its time.
PATIENCE = 120.0
#: How often it is tried to be heard, and the seconds in between.
_TRIES, _PAUSE = 100, 0.05


def ask(config: str, request: str) -> Answer:
    """Send a request to the process that runs with a configuration file. Raises `ClientError`."""
    shown = escape(os.path.abspath(config))
    if sys.platform != "linux":
        raise ClientError("this needs Linux; send the process a SIGHUP: kill -HUP PID")
    for name in control_names(config):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            try:
                _connect(connection, name)
            except ConnectionRefusedError:
                continue
            except OSError:
                raise ClientError(f"the process that runs with {shown} has no time; try again") from None
            try:
                _check(connection, config)
                connection.sendall(f"{request}\n".encode())
                return read_answer(_read(connection))
            except TimeoutError:
                raise ClientError(f"the process that runs with {shown} does not answer; its log may say why") from None
            except (OSError, ValueError):
                raise ClientError(
                    f"the process that runs with {shown} closed the connection: it answers its own user, and root, "
                    "and can do so only while it may open files"
                ) from None
    missing = "" if os.path.exists(config) else ", and there is no such file"
    raise ClientError(f"no process runs with --config {shown}{missing}; name the file that it was started with")


def _connect(connection: socket.socket, name: str) -> None:
    for _ in range(_TRIES):
        try:
            connection.connect(name)
            return
        except BlockingIOError:
            # Too many others wait to be heard.
            time.sleep(_PAUSE)
    raise TimeoutError


def _check(connection: socket.socket, config: str) -> None:
    """Raise `ClientError` if somebody else has taken the name; warn root, who may ask anybody's process."""
    user = peer_user(connection)
    if user in (0, os.geteuid()):
        return
    if os.geteuid() != 0:
        raise ClientError(f"the process that answers is that of user {user}; ask as that user, or as root")
    with suppress(OSError):
        if os.stat(config).st_uid == user:
            return
    click.echo(f"netsvc: warning: the process that answers is that of user {user}", err=True)


def _read(connection: socket.socket) -> bytes:
    data = b""
    while len(data) <= LONGEST_ANSWER and (more := connection.recv(65536)):
        data += more
    return data


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    metavar="FILE",
    default="netsvc.toml",
    show_default=True,
    help="The file that the process was started with.",
)
def command(config: str) -> None:
    """Have the running process read its configuration file again.

    What is unchanged keeps its port and its connections. Says what changed; or, with exit status 1, why nothing did.
    """
    try:
        answer = ask(config, "reload")
    except ClientError as error:
        answer = Answer(1, [str(error)])
    for line in answer.lines:
        click.echo(f"netsvc: {plain(line)}" if answer.status else plain(line), err=bool(answer.status))
    sys.exit(1 if answer.status else 0)
