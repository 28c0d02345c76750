"""Declares an endpoint string prefix, for a file in `twisted/plugins/`."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class EndpointPrefix:
    """Names the function, `package.module.function`, that makes the endpoints of `prefix:…`.

    Twisted may import the declaring file while options are parsed, before a reactor is installed. The module of the
    function is imported only when such an endpoint is used.
    """

    def __init__(self, prefix: str, target: str) -> None:
        self.prefix = prefix
        self.target = target

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Import the function, and call it with the same arguments."""
        endpoint: IStreamServerEndpoint = namedAny(self.target)(reactor, *args, **kwargs)
        return endpoint
