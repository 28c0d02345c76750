"""What ends a client: one line for the user."""

from __future__ import annotations

import socket
import ssl

from netsvc.client.address import ServerAddress
from netsvc.text import escape

__all__ = ["ClientError", "LeaveError", "OutputClosedError", "explain", "reason"]


class ClientError(Exception):
    """The client cannot go on; the text is one line for the user. Exit status 1."""


class OutputClosedError(Exception):
    """Whoever read our standard output has left (`| head`): there is nothing to say, and nobody to say it to."""


class LeaveError(Exception):
    """The user pressed Ctrl-C while a line was being edited, where the terminal sends no signal."""


def reason(error: OSError) -> str:
    """Say what the system said, in one line without its error number."""
    if isinstance(error, ssl.SSLError):
        # OpenSSL's own words are in one of these, for errors that come from OpenSSL.
        said = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.strerror
        return escape(str(said or error)).replace("_", " ").lower()
    text = escape(error.strerror or str(error) or type(error).__name__)
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def explain(error: OSError, address: ServerAddress) -> ClientError:
    """Say in one line why there is no conversation with `address`, and where there is a cure, the cure."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(
            f"{address}: its certificate is not trusted ({reason(error)}); "
            "name its authority with --ca FILE, or skip the check with --insecure"
        )
    if isinstance(error, ssl.SSLError):
        return ClientError(f"{address}: TLS failed ({reason(error)}); does this port speak TLS?")
    if isinstance(error, socket.gaierror):
        return ClientError(f"{address}: no address is known for this host ({reason(error)})")
    if isinstance(error, ConnectionRefusedError):
        return ClientError(f"{address}: connection refused; is the server running, and is it this port?")
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return ClientError(f"{address}: the server cut the connection off")
    if isinstance(error, TimeoutError):
        return ClientError(f"{address}: no answer; is the host up, and does a firewall let us through?")
    if isinstance(error, FileNotFoundError):
        return ClientError(f"{address}: there is no such socket; is the server running?")
    return ClientError(f"{address}: {reason(error)}")
