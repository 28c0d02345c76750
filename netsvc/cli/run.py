"""`netsvc run`, `netsvc check` and `netsvc list`: serve, or show what would be served."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import click

from netsvc import __version__
from netsvc.base.errors import StartError, UserError
from netsvc.base.text import plain
from netsvc.cli.processes import DEFAULT_CONFIG
from netsvc.config.discovery import discover
from netsvc.plan.plan import Plan

__all__ = ["RUN_OPTIONS", "check", "list_services", "run"]

#: The arguments are the same as for the twistd plugin, which has its own parser and --help.
_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}

_RELOAD = "--reload-on-change"
#: The options that only `netsvc run` has, and their help.
RUN_OPTIONS = (
    (_RELOAD, "Replace the process when a source file changes; needs netsvc[reload]"),
    ("--reactor NAME", "Run on another reactor of Twisted, such as asyncio for asyncio's libraries"),
)


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def run(words: Sequence[str]) -> None:
    """Run services in the foreground: `twistd -n --pidfile= netsvc ARGS…`, with ./netsvc.toml if it exists."""
    if _shows_help("run", words):
        return
    if _RELOAD in words:
        from netsvc.cli.watch import run_with_reload

        raise click.exceptions.Exit(run_with_reload([word for word in words if word != _RELOAD]))
    from twisted.application.app import run as run_twistd
    from twisted.scripts._twistd_unix import ServerOptions

    reactor, words = _reactor(words)
    sys.argv = ["twistd", "-n", "--pidfile=", *reactor, "netsvc", *_with_file_here(words)]
    run_twistd(_run_application, ServerOptions)


def _reactor(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of `--reactor`, an option of twistd itself, and the other words."""
    words = list(words)
    for index, word in enumerate(words):
        if word.startswith("--reactor="):
            return [word], words[:index] + words[index + 1 :]
        if word == "--reactor" and index + 1 < len(words):
            return words[index : index + 2], words[:index] + words[index + 2 :]
    return [], words


def _run_application(config: Any) -> None:
    """Run the application as twistd does, but exit with status 0 after a SIGTERM: the stop was requested and is done.

    After SIGINT the process ends by that signal, as a shell expects of a program that Ctrl-C has stopped.
    """
    from twisted.scripts._twistd_unix import UnixApplicationRunner

    runner = UnixApplicationRunner(config)
    runner.run()
    if runner._exitSignal == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def check(words: Sequence[str]) -> None:
    """Print what `run` would do with the same ARGS, or every error in them. Opens no port.

    With the name of a service instead, print how it is declared, or which declaration is missing.
    """
    from twisted.internet.task import Clock

    from netsvc.config.arguments import in_order, survey_arguments
    from netsvc.config.conflicts import claims_of, find_conflicts, find_unusable
    from netsvc.config.draft import load_use
    from netsvc.config.pages import list_page, plan_page
    from netsvc.server.instances import examine, service_notes

    if _shows_help("check", words):
        return
    if "--version" in words:
        click.echo(f"netsvc {__version__}")
        return
    if len(words) == 1 and re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
        _check_service(words[0])
        return
    words = _with_file_here(_reactor(words)[1])
    catalogue = discover()
    if "--list" in words:
        click.echo(list_page(catalogue))
        return
    plan, errors = survey_arguments(words, catalogue)
    load = partial(load_use, catalogue=catalogue)
    errors += examine(plan, load, Clock())
    notes: list[str] = []
    claims = claims_of(plan)
    if plan.twistd:
        from netsvc.embedded.service import examine_twistd

        for use in plan.twistd:
            wrong, remarks, claimed = examine_twistd(use, plan.limits)
            errors += wrong
            notes += remarks
            claims += claimed
        errors += find_conflicts(claims)
    # Not for a start: chroot(2) may come before it opens its ports, and systemd may pass them.
    errors += find_unusable(claims)
    errors = in_order(errors, words)
    _warn(warning for warning in catalogue.warnings() if warning not in errors)
    _warn(_expired(plan))
    if errors:
        raise StartError("\n".join(errors))
    click.echo(plan_page(plan, catalogue, [*notes, *service_notes(plan, load, Clock())]))


def _check_service(name: str) -> None:
    from netsvc.config.pages import list_page

    catalogue = discover()
    try:
        catalogue.load(name)
    except UserError as error:
        raise StartError("\n".join(error.errors)) from None
    click.echo(list_page(catalogue, name))
    if not catalogue.services[name].origin.endswith(".py"):
        plugin = f'{name.replace("-", "_")} = ServicePlugin("{name}", "{catalogue.services[name].target}", "…")'
        click.echo(f"  twistd     no command netsvc-{name}: that needs a file in twisted/plugins/ with {plugin}")


@click.command(name="list")
def list_services() -> None:
    """List the installed services.

    Prints the protocols and options of each, and where it is defined.

    \b
    Example:
      netsvc list
    """
    from netsvc.config.pages import list_page

    catalogue = discover()
    click.echo(list_page(catalogue))


def _with_file_here(words: Sequence[str]) -> Sequence[str]:
    """Return the arguments, and before them, if they name no file, one that names ./netsvc.toml, if it exists."""
    names_file = any(word == "--config" or word.startswith("--config=") for word in words)
    if names_file or not os.path.exists(DEFAULT_CONFIG) or {"--list", "--version"} & set(words):
        return words
    if words:
        alone = "for the arguments alone, use twistd -n --pidfile= netsvc"
        click.echo(f"netsvc: the arguments are added to ./{DEFAULT_CONFIG}; {alone}", err=True)
    return ("--config", DEFAULT_CONFIG, *words)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"netsvc: warning: {warning}", err=True)


def _expired(plan: Plan) -> list[str]:
    """Return the warnings that a start would log about certificates that are not valid now."""
    from twisted.internet.task import Clock
    from twisted.logger import LogEvent, formatEvent, globalLogPublisher

    from netsvc.listen.certificates import CertificateError
    from netsvc.listen.tls import Certificates

    events: list[LogEvent] = []
    remember: Any = events.append
    globalLogPublisher.addObserver(remember)
    try:
        for tls in dict.fromkeys(listener.address.tls for listener in plan.listeners):
            # An unusable certificate is among the errors.
            with suppress(CertificateError):
                if tls is not None:
                    Certificates(tls, Clock())
    finally:
        globalLogPublisher.removeObserver(remember)
    return [plain(formatEvent(event)) for event in events if event["log_namespace"] == "netsvc.tls"]


def _shows_help(command: str, words: Sequence[str]) -> bool:
    """Print the help if it is requested, and return whether it is."""
    from netsvc.config.help import help_page, help_topic

    topic = help_topic(words)
    if topic is None:
        return False
    try:
        more = RUN_OPTIONS if command == "run" else ()
        click.echo(help_page(discover(), topic, command=f"netsvc {command}", more=more), nl=False)
    except UserError as error:
        raise StartError(str(error)) from None
    return True
