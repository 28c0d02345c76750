"""A bare echo run by twistd: `PORT=9001 twistd -n -y twistd_echo.tac`. What netsvc's own start is compared with."""

import os

from twisted.application import internet, service
from twisted.internet import protocol


class Echo(protocol.Protocol):
    """Sends back what comes."""

    def dataReceived(self, data):
        self.transport.write(data)


application = service.Application("echo")
echo = internet.TCPServer(int(os.environ["PORT"]), protocol.Factory.forProtocol(Echo), interface="127.0.0.1")
echo.setServiceParent(application)
