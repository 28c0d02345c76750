"""The twistd plugin: options in, a host out. Where twistd and netsvc meet."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from twisted.application.service import IService
from twisted.python import usage

from netsvc import __version__
from netsvc.arguments import load_use, read_arguments
from netsvc.discovery import Catalogue, discover
from netsvc.errors import MistakeError, StartError
from netsvc.host.host import Host
from netsvc.host.instances import Load
from netsvc.host.reload import Reloading, from_directory
from netsvc.pages import help_page, list_page
from netsvc.plan import Plan
from netsvc.textlog import LogsText
from netsvc.workers.workers import Workers

__all__ = ["Options", "makeService", "standalone_options"]


class Options(usage.Options):
    """The options of `twistd netsvc`, which depend on the services that are found."""

    #: The one service that the command runs, for the commands `netsvc-<service>`.
    alone: str | None = None

    plan: Plan
    catalogue: Catalogue
    #: What was read, and in which directory: it is read again when the process is to reload.
    words: Sequence[str] = ()
    directory: str = "."

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the words into `plan`. Raises `StartError` with a line for every mistake."""
        words = list(sys.argv[1:] if options is None else options)
        self.words, self.directory = words, os.getcwd()
        pages = {"--help", "-h", "--version", "--list"}
        if not pages & set(words):
            # First: a plugin that imports the reactor would install Twisted's default.
            _install_fast_reactor()
        self.catalogue = discover()
        for asked, page in (
            ({"--help", "-h"}, self.__str__),
            ({"--version"}, lambda: f"netsvc {__version__}"),
            ({"--list"}, lambda: list_page(self.catalogue)),
        ):
            if asked & set(words):
                sys.stdout.write(f"{page().rstrip()}\n")
                raise SystemExit(0)
        try:
            self.plan = read_arguments(words, self.catalogue, self.alone)
        except MistakeError as error:
            raise StartError("\n".join(error.mistakes)) from None

    def __str__(self) -> str:
        return help_page(getattr(self, "catalogue", None) or discover(), self.alone)


def standalone_options(service: str) -> type[Options]:
    """Make the options class of the command that runs one service alone."""
    return type("Options", (Options,), {"alone": service, "__doc__": f"The options of `twistd netsvc-{service}`."})


def makeService(options: Options) -> IService:
    """Make the host of the plan that the options hold, or what runs it in several processes."""
    catalogue = options.catalogue
    load, warnings = partial(load_use, catalogue=catalogue), catalogue.warnings()
    if options.plan.workers == 1:
        root: _Root = _RootHost(options.plan, load, warnings=warnings)
    else:
        root = _RootWorkers(options.plan, load, warnings=warnings, reactor_chosen=_has_chosen_reactor(options))
    root.twistd_options = parent = options.parent
    chroot = None if parent is None else parent.get("chroot")
    root.read = from_directory(partial(_read_again, options.words, options.alone, root), options.directory, chroot)
    return root


def _read_again(words: Sequence[str], alone: str | None, root: Reloading) -> tuple[Plan, Load]:
    catalogue = discover()
    in_use = [listener.address for listener in root.plan.listeners]
    return read_arguments(words, catalogue, alone, in_use), partial(load_use, catalogue=catalogue)


class _Root(Reloading, LogsText):
    """A service right below the application."""


class _RootHost(_Root, Host):
    """A host there."""


class _RootWorkers(_Root, Workers):
    """The same of several processes."""


def _install_fast_reactor() -> None:
    """Install the fast reactor where the system has epoll, unless there is a reactor already: the user's choice."""
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from netsvc.reactor import install

        install()


def _has_chosen_reactor(options: Options) -> bool:
    """Tell whether the user gave `--reactor` to twistd, or to twist."""
    given: Mapping[str, object] = options.parent or {}
    return given.get("reactorName" if "reactorName" in given else "reactor", "default") != "default"
