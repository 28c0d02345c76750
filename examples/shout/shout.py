from netsvc.datagram import AnsweringProtocol, LoopGuard
from netsvc.service import Service
from netsvc.services.echo.tcp import Echo


class Shout(Echo):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())


class ShoutUDP(AnsweringProtocol):
    def answer(self, data: bytes) -> bytes:
        return data.upper()


service = Service("shout", "Send back capitals", core=LoopGuard, streams={"tcp": Shout}, datagrams={"udp": ShoutUDP})
