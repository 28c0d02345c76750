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
from netsvc.admin.administered import Administered
from netsvc.arguments import load_use, read_arguments
from netsvc.discovery import Catalogue, discover
from netsvc.errors import MistakeError, StartError
from netsvc.host.host import Host
from netsvc.host.instances import Load
from netsvc.host.notify import Notifier, take_environment
from netsvc.host.pidfile import PidFile
from netsvc.host.process import prepare_shedding, root_warnings
from netsvc.host.reload import Reloading, from_directory
from netsvc.host.state import KeepsState
from netsvc.log.opening import Logging
from netsvc.pages import help_page, list_page
from netsvc.plan import Plan
from netsvc.upgrade.predecessor import Predecessor
from netsvc.upgrade.program import Program
from netsvc.upgrade.twistd import is_detached, start_within, take_pid_file
from netsvc.upgrade.upgrading import Upgrading, reporting
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
    #: The process whose place this one takes, if it does; and how this one was started.
    predecessor: Predecessor | None = None
    program: Program | None = None
    pid_file: PidFile | None = None
    detached = False

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the words into `plan`. Raises `StartError` with a line for every mistake."""
        words = list(sys.argv[1:] if options is None else options)
        self.words, self.directory = words, os.getcwd()
        # Before anything else sees what is meant for this process alone.
        self.predecessor = _met_predecessor()
        self.program = Program.current()
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
        with reporting(self.predecessor):
            self._read(words)

    def _read(self, words: Sequence[str]) -> None:
        in_use = [] if self.predecessor is None else self.predecessor.inheritance.addresses()
        try:
            self.plan = read_arguments(words, self.catalogue, self.alone, in_use)
            if self.parent is not None:
                self.detached = is_detached(self.parent, self.predecessor)
                self.pid_file = take_pid_file(self.parent)
                if self.predecessor is not None:
                    start_within(self.parent)
                elif self.pid_file is not None:
                    self.pid_file.check()
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
    load = partial(load_use, catalogue=catalogue)
    warnings = [*catalogue.warnings(), *root_warnings(options.parent or {})]
    if options.plan.workers == 1:
        root: _Root = _RootHost(options.plan, load, warnings=warnings)
    else:
        root = _RootWorkers(options.plan, load, warnings=warnings, reactor_chosen=_has_chosen_reactor(options))
    # Now: when the services start, twistd may have changed the root directory.
    root.notifier = Notifier(take_environment(os.environ))
    root.predecessor, root.program = options.predecessor, options.program
    root.pid_file, root.detached = options.pid_file, options.detached
    root.twistd_options = parent = options.parent
    chroot = None if parent is None else parent.get("chroot")
    prepare_shedding(parent or {})
    root.read = from_directory(partial(_read_again, options.words, options.alone, root), options.directory, chroot)
    return root


def _read_again(words: Sequence[str], alone: str | None, root: Reloading) -> tuple[Plan, Load]:
    catalogue = discover()
    admin = [root.plan.admin.address] if root.plan.admin else []
    in_use = [*(listener.address for listener in root.plan.listeners), *admin]
    return read_arguments(words, catalogue, alone, in_use), partial(load_use, catalogue=catalogue)


class _Root(Upgrading, Reloading, Administered, Logging, KeepsState):
    """A service right below the application."""


class _RootHost(_Root, Host):
    """A host there."""

    def privilegedStartService(self) -> None:
        """Start as a host does, and have its connections recorded."""
        super().privilegedStartService()
        if self.log is not None:
            self.guard.book.record = self.log.recorder(self._reactor)


class _RootWorkers(_Root, Workers):
    """The same of several processes."""


def _met_predecessor() -> Predecessor | None:
    try:
        return Predecessor.met(os.environ)
    except ValueError as error:
        raise StartError(str(error)) from None


def _install_fast_reactor() -> None:
    """Install the fast reactor where the system has epoll, unless there is a reactor already: the user's choice."""
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from netsvc.reactor import install

        install()


def _has_chosen_reactor(options: Options) -> bool:
    """Tell whether the user gave `--reactor` to twistd, or to twist."""
    given: Mapping[str, object] = options.parent or {}
    return given.get("reactorName" if "reactorName" in given else "reactor", "default") != "default"
