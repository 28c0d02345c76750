"""The errors that end a client command, and its exit status."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from netsvc.base.text import escape, plain

if TYPE_CHECKING:
    import ssl

    from netsvc.plan.address import ServerAddress

__all__ = [
    "AgainError",
    "ClientError",
    "LeaveError",
    "OutputClosedError",
    "SignalError",
    "conclude",
    "distrust",
    "exits",
    "explain",
    "reason",
]

#: A shell reports 128 plus the number of the signal that ended a process.
_BY_SIGNAL = 128


class ClientError(Exception):
    """The command cannot continue. The text is for the user, one line per error. Exit status 1."""


class AgainError(Exception):
    """Another try may succeed: the reason, and when the server wants it, in seconds."""

    def __init__(self, line: str, pause: float = 0.0) -> None:
        super().__init__(line)
        self.pause = pause


class OutputClosedError(Exception):
    """The reader of standard output has closed it (`| head`). Exit status 141."""


class LeaveError(Exception):
    """The user pressed Ctrl-C in the line editor, where the terminal sends no signal. Exit status 130."""


class SignalError(Exception):
    """SIGTERM or SIGHUP arrived; `number` is the signal. Exit status 143 or 129."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def exits() -> Iterator[None]:
    """Turn each way in which the block can end into an exit status, without a traceback.

    A `ClientError` is written to stderr, one line per error. SIGTERM and SIGHUP raise `SignalError` in the block, so
    that it can clean up, unless they are ignored (nohup).
    """
    try:
        with _signals(_raise_signal):
            yield
    except ClientError as error:
        for line in str(error).splitlines():
            click.echo(f"netsvc: {plain(line)}", err=True)
        status = 1
    except (KeyboardInterrupt, LeaveError):
        status = _BY_SIGNAL + signal.SIGINT
    except OutputClosedError:
        status = _BY_SIGNAL + signal.SIGPIPE
    except SignalError as error:
        status = _BY_SIGNAL + error.number
    else:
        return
    raise click.exceptions.Exit(status)


def conclude(client: Coroutine[Any, Any, int]) -> None:
    """Run `client` and end the command with the exit status that it returns, or as `exits` says.

    A signal cancels it, so that it can clean up.
    """
    import asyncio

    received: list[int] = []

    async def run() -> int:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel(number: int, _frame: object) -> None:
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

        # Not add_signal_handler: it would take over the wake-up descriptor of the process, which another event loop
        # may need.
        with _signals(cancel):
            return await client

    with exits():
        try:
            status = asyncio.run(run())
        except asyncio.CancelledError:
            raise SignalError(received[0]) from None
    raise click.exceptions.Exit(status)


def _raise_signal(number: int, _frame: object) -> None:
    raise SignalError(number)


@contextmanager
def _signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # An ignored signal stays ignored (nohup).
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, disposition in previous.items():
            signal.signal(number, disposition)


def reason(error: OSError) -> str:
    """Return the text of a system error in one line, without its number."""
    import ssl

    if isinstance(error, ssl.SSLError):
        # Errors of OpenSSL have its text in one of these.
        said = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.strerror
        return escape(str(said or error)).replace("_", " ").lower()
    text = escape(error.strerror or str(error) or type(error).__name__)
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def distrust(error: ssl.SSLCertVerificationError) -> str:
    """Return why a certificate is refused, and the cure. The numbers are those of OpenSSL's x509_vfy.h."""
    code, said = error.verify_code, reason(error)
    if code == 10:
        return f"its certificate has expired ({said}); the server needs a new one"
    if code == 9:
        return f"its certificate is not valid yet ({said}); is the clock right?"
    if code in (62, 64):
        return f"its certificate is for another name ({said}); use a name that is in it"
    return (
        f"its certificate is not trusted ({said}); "
        "name its authority with --ca FILE, or use --insecure to skip verification"
    )


def explain(error: OSError, address: ServerAddress) -> ClientError:
    """Return the error for a failed connection to `address`: one line with the cause and, if there is one, the cure."""
    import socket
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(f"{address}: {distrust(error)}")
    if isinstance(error, ssl.SSLError):
        return ClientError(f"{address}: TLS failed ({reason(error)}); does this port speak TLS?")
    if isinstance(error, socket.gaierror):
        return ClientError(f"{address}: cannot resolve the host ({reason(error)})")
    if isinstance(error, ConnectionRefusedError):
        return ClientError(f"{address}: connection refused; is the server running, and is the port right?")
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return ClientError(f"{address}: the server reset the connection")
    if isinstance(error, TimeoutError):
        return ClientError(f"{address}: no answer; is the host up, or does a firewall block it?")
    if isinstance(error, FileNotFoundError):
        return ClientError(f"{address}: no such socket; is the server running?")
    return ClientError(f"{address}: {reason(error)}")
