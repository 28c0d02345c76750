"""The commands that serve, or tell what would be served: `netsvc run`, `check` and `list`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import click

from netsvc import __version__
from netsvc.discovery import discover
from netsvc.errors import StartError
from netsvc.plan import Plan
from netsvc.text import plain

__all__ = ["check", "list_services", "run"]

#: Everything after the command's name is for twistd's plugin, which has its own reader and its own --help.
_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def run(words: Sequence[str]) -> None:
    """Run services: `twistd -n --pidfile= netsvc ARGS…` in one word; without ARGS, what ./netsvc.toml says."""
    if {"--help", "-h"} & set(words):
        _show_help("run")
        return
    from twisted.scripts.twistd import run as run_twistd

    sys.argv = ["twistd", "-n", "--pidfile=", "netsvc", *_or_here(words)]
    run_twistd()


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def check(words: Sequence[str]) -> None:
    """Show what `run` would do with the same ARGS, or every mistake in them. Opens no port."""
    from twisted.internet.task import Clock

    from netsvc.arguments import in_order, load_use, survey_arguments
    from netsvc.host.host import examine
    from netsvc.pages import list_page, plan_page

    if {"--help", "-h"} & set(words):
        _show_help("check")
        return
    if "--version" in words:
        click.echo(f"netsvc {__version__}")
        return
    words = _or_here(words)
    catalogue = discover()
    if "--list" in words:
        click.echo(list_page(catalogue))
        return
    plan, mistakes = survey_arguments(words, catalogue)
    mistakes += examine(plan, partial(load_use, catalogue=catalogue), Clock())
    notes: list[str] = []
    if plan.twistd:
        from netsvc.embedded.service import examine_twistd

        for use in plan.twistd:
            wrong, remarks = examine_twistd(use, plan.limits)
            mistakes += wrong
            notes += remarks
    mistakes = in_order(mistakes, words)
    _warn(warning for warning in catalogue.warnings() if warning not in mistakes)
    _warn(_expired(plan))
    if mistakes:
        raise StartError("\n".join(mistakes))
    click.echo(plan_page(plan, catalogue, notes))


@click.command(name="list")
def list_services() -> None:
    """List the services that are installed, their protocols and options, and where each comes from."""
    from netsvc.pages import list_page

    catalogue = discover()
    click.echo(list_page(catalogue))


def _or_here(words: Sequence[str]) -> Sequence[str]:
    """Return the words, or, if there are none, those that name the file that is here; as `netsvc status` finds it."""
    if words:
        return words
    from netsvc.client.finding import HERE

    return ("--config", HERE) if os.path.exists(HERE) else ()


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"netsvc: warning: {warning}", err=True)


def _expired(plan: Plan) -> list[str]:
    """Say what a start would log of the certificates in a plan: which of them are not valid now."""
    from twisted.internet.task import Clock
    from twisted.logger import LogEvent, formatEvent, globalLogPublisher

    from netsvc.listeners.certificates import CertificateError
    from netsvc.listeners.tls import Certificates

    events: list[LogEvent] = []
    remember: Any = events.append
    globalLogPublisher.addObserver(remember)
    try:
        for tls in dict.fromkeys(listener.address.tls for listener in plan.listeners):
            # One that cannot be used is a mistake, of which there is a line.
            with suppress(CertificateError):
                if tls is not None:
                    Certificates(tls, Clock())
    finally:
        globalLogPublisher.removeObserver(remember)
    return [plain(formatEvent(event)) for event in events if event["log_namespace"] == "netsvc.tls"]


def _show_help(command: str) -> None:
    from netsvc.pages import help_page

    page = help_page(discover()).replace("twistd [options] netsvc [netsvc options]", f"netsvc {command} [options]")
    click.echo(page.replace("twistd -n netsvc ", f"netsvc {command} "), nl=False)
