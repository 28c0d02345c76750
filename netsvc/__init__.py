"""netsvc runs Twisted protocols, stream and datagram, as services of one process."""

__version__ = "0.1.0"
