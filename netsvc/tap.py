"""The twistd plugin: reads the options, and makes the application."""

from __future__ import annotations

import gc
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService
from twisted.python import usage

from netsvc import __version__
from netsvc.base.signals import process_signals

if TYPE_CHECKING:
    from netsvc.app.application import Application
    from netsvc.config.discovery import Catalogue
    from netsvc.plan.plan import Plan
    from netsvc.server.instances import Load
    from netsvc.server.interface import IServer
    from netsvc.server.pidfile import PidFile
    from netsvc.upgrade.predecessor import Predecessor
    from netsvc.upgrade.program import Program

__all__ = ["CommandOptions", "Options", "makeService", "make_application", "standalone_options"]


#: Modules that are imported when they are used, which is too late in a changed root directory.
_IMPORTED_LATER = (
    "netsvc.base.instruments",
    "netsvc.embedded.service",
    "netsvc.listen.haproxy",
    "netsvc.upgrade.successor",
    "netsvc.upgrade.proxy",
)
#: Options that print a page instead of running services.
_PAGES = {"--help", "-h", "--version", "--list"}


class CommandOptions(usage.Options):
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
        """Read the arguments into `plan`. Raises `StartError` with a line for every error."""
        words = list(sys.argv[1:] if options is None else options)
        if self.parent is not None and not _PAGES & set(words):
            process_signals.take_over()
        with _collection_paused(self):
            self._parse(words)

    def _parse(self, words: Sequence[str]) -> None:
        # All but the standard library is imported in here, while no garbage is collected.
        from netsvc.config.discovery import discover
        from netsvc.listen.systemd import keep_from_children
        from netsvc.log import standard
        from netsvc.upgrade.program import Program
        from netsvc.upgrade.upgrader import reporting

        # Before anything else sees what is meant for this process alone.
        self.predecessor = _met_predecessor()
        keep_from_children()
        self.program = Program.current()
        self.words, self.directory = words, self.program.directory
        if not _PAGES & set(words):
            # First: a plugin that imports the reactor would install Twisted's default.
            _install_fast_reactor()
            if self.parent is not None:
                standard.take_over()
        self.catalogue = discover()
        if _PAGES & set(words):
            sys.stdout.write(f"{self._page(words).rstrip()}\n")
            raise SystemExit(0)
        with reporting(self.predecessor):
            self._read(words)

    def _page(self, words: Sequence[str]) -> str:
        """Return the page that `--help`, `--version` or `--list` asks for."""
        from netsvc.base.errors import StartError, UserError
        from netsvc.config.help import help_page, help_topic
        from netsvc.config.pages import list_page

        topic = help_topic(words)
        if topic is None:
            return f"netsvc {__version__}" if "--version" in words else list_page(self.catalogue)
        try:
            return help_page(self.catalogue, topic, self.alone)
        except UserError as error:
            raise StartError(str(error)) from None

    def _read(self, words: Sequence[str]) -> None:
        from netsvc.base.directory import removed
        from netsvc.base.errors import StartError, UserError
        from netsvc.config.arguments import read_arguments
        from netsvc.upgrade.program import is_detached, start_within, take_pid_file

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
        except UserError as error:
            raise StartError("\n".join(error.errors)) from None
        except FileNotFoundError:
            # Raised for any relative path if the working directory was removed (getcwd(3)), and else for none.
            raise StartError(removed(self.directory)) from None

    def __str__(self) -> str:
        from netsvc.config.discovery import discover
        from netsvc.config.help import help_page

        return help_page(getattr(self, "catalogue", None) or discover(), alone=self.alone)


#: The name by which twistd asks for it.
Options = CommandOptions


def standalone_options(service: str) -> type[CommandOptions]:
    """Make the options class of the command that runs one service alone."""
    return type(
        "Options", (CommandOptions,), {"alone": service, "__doc__": f"The options of `twistd netsvc-{service}`."}
    )


def makeService(options: CommandOptions) -> IService:
    """Make the application that runs the plan of these options."""
    with _collection_paused(options):
        # The options have decided which reactor it is.
        from twisted.internet import reactor

        return make_application(options, reactor)


def make_application(options: CommandOptions, reactor: Any) -> Application:
    """Make the application that runs the plan of these options on this reactor."""
    from netsvc.app.application import Application
    from netsvc.app.reload import in_directory
    from netsvc.config.draft import load_use
    from netsvc.server.notify import Notifier, take_environment
    from netsvc.server.process import prepare_shedding, root_warnings

    catalogue = options.catalogue
    load = partial(load_use, catalogue=catalogue)
    parent: Mapping[str, Any] = options.parent or {}
    warnings = [*catalogue.warnings(), *root_warnings(parent)]
    server: IServer
    if options.plan.workers == 1:
        from netsvc.server.server import Server

        server = Server(options.plan, load, reactor, warnings)
    else:
        from netsvc.workers.workers import Workers

        server = Workers(options.plan, load, reactor, warnings, reactor_chosen=_has_chosen_reactor(options))
    # Both now: when the services start, twistd may have changed the root directory.
    notifier = Notifier(take_environment(os.environ))
    prepare_shedding(parent)
    if parent.get("chroot"):
        for name in _IMPORTED_LATER:
            import_module(name)
    read = partial(_read_again, options.words, options.alone, server)
    return Application(
        server,
        reactor,
        in_directory(read, options.directory, parent.get("chroot")),
        options=parent,
        notifier=notifier,
        pid_file=options.pid_file,
        program=options.program,
        predecessor=options.predecessor,
        detached=options.detached,
    )


@contextmanager
def _collection_paused(options: CommandOptions) -> Iterator[None]:
    """Collect no garbage meanwhile, and leave what was made meanwhile out of later collections, below twistd or twist.

    The collections during the imports take a sixth of a start, and find nothing.
    """
    if options.parent is None or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _read_again(words: Sequence[str], alone: str | None, server: IServer) -> tuple[Plan, Load]:
    from netsvc.config.arguments import read_arguments
    from netsvc.config.discovery import discover
    from netsvc.config.draft import load_use

    catalogue = discover()
    admin = [server.plan.admin.address] if server.plan.admin else []
    in_use = [*(listener.address for listener in server.plan.listeners), *admin]
    return read_arguments(words, catalogue, alone, in_use), partial(load_use, catalogue=catalogue)


def _met_predecessor() -> Predecessor | None:
    from netsvc.upgrade.program import VARIABLE

    if VARIABLE not in os.environ:
        return None
    from netsvc.base.errors import StartError
    from netsvc.upgrade.predecessor import Predecessor

    try:
        return Predecessor.met(os.environ)
    except ValueError as error:
        raise StartError(str(error)) from None


def _install_fast_reactor() -> None:
    """Install the fast reactor where the system has epoll, unless there is a reactor already: the user's choice."""
    if "twisted.internet.reactor" not in sys.modules and hasattr(select, "epoll"):
        from netsvc.reactor.epoll import install

        install()


def _has_chosen_reactor(options: CommandOptions) -> bool:
    """Return whether the user gave `--reactor` to twistd or twist."""
    given: Mapping[str, object] = options.parent or {}
    return given.get("reactorName" if "reactorName" in given else "reactor", "default") != "default"
