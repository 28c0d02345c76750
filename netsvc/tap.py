"""The twistd plugin: options in, a host out. Where twistd and netsvc meet."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.application.service import IService
from twisted.python import usage

from netsvc import __version__
from netsvc.arguments import load_use, read_arguments
from netsvc.discovery import Catalogue, discover
from netsvc.errors import MistakeError, StartError
from netsvc.host import Host
from netsvc.pages import help_page, list_page
from netsvc.plan import Plan

__all__ = ["Options", "makeService", "standalone_options"]


class Options(usage.Options):
    """The options of `twistd netsvc`, which depend on the services that are found."""

    #: The one service that the command runs, for the commands `netsvc-<service>`.
    alone: str | None = None

    plan: Plan
    catalogue: Catalogue

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the words into `plan`. Raises `StartError` with a line for every mistake."""
        words = list(sys.argv[1:] if options is None else options)
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
    """Make the host of the plan that the options hold."""
    catalogue = options.catalogue
    return Host(options.plan, lambda use: load_use(use, catalogue), warnings=catalogue.warnings())
