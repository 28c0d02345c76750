"""Answers lines in capitals: a server of the standard library, before it is moved to netsvc."""

import socketserver


class Shout(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


if __name__ == "__main__":
    with socketserver.ThreadingTCPServer(("", 9001), Shout) as server:
        server.serve_forever()
