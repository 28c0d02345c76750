from netsvc.datagram import AnsweringProtocol
from netsvc.service import Service
from netsvc.stream import StreamProtocol


class Shout(StreamProtocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())


class ShoutUDP(AnsweringProtocol):
    def answer(self, data: bytes) -> bytes:
        return data.upper()


service = Service("shout", "Send back capitals", streams={"tcp": Shout}, datagrams={"udp": ShoutUDP})
