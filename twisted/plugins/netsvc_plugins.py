"""What Twisted finds: the `netsvc` command, the services, `guard:`. Names only; their modules load when used."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

from netsvc.embedded.prefix import EndpointPrefix
from netsvc.service import ServicePlugin

netsvc = ServiceMaker("netsvc", "netsvc.tap", "Run TCP and UDP services together in one process", "netsvc")
fast = Reactor("netsvc", "netsvc.reactor.epoll", "The epoll reactor of netsvc: fewer system calls for each message")
uvloop = Reactor("uvloop", "netsvc.reactor.uvloop", "The asyncio reactor over uvloop, if that is installed")
guard = EndpointPrefix("guard", "netsvc.embedded.endpoint.guarded_endpoint")

echo = ServicePlugin("echo", "netsvc.services.echo:service", "Send back what it receives (RFC 862)")
reply = ServicePlugin("reply", "netsvc.services.reply:service", "Answer everything with a fixed text")
chat = ServicePlugin("chat", "netsvc.services.chat:service", "Chat rooms for nc, telnet, clients of IRC and browsers")
files = ServicePlugin("files", "netsvc.services.files:service", "Send files from below one directory")
