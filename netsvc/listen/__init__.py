"""An address and a protocol in, an open port out: sockets, TLS and the PROXY header."""
