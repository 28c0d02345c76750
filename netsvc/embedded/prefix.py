"""Declares the prefix of an endpoint string, for a file in `twisted/plugins/`."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer

__all__ = ["EndpointPrefix"]


@implementer(IPlugin, IStreamServerEndpointStringParser)
class EndpointPrefix:
    """Points by name to what makes the endpoint of `prefix:…`: `package.module.function`.

    Twisted may import the file that declares it while options are parsed, before there is a reactor; the module is
    not imported before such an endpoint is asked for.
    """

    def __init__(self, prefix: str, target: str) -> None:
        self.prefix = prefix
        self.target = target

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Call the function with the same arguments."""
        endpoint: IStreamServerEndpoint = namedAny(self.target)(reactor, *args, **kwargs)
        return endpoint
