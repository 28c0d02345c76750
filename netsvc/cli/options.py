"""The arguments and options that the clients talk, chat and get share."""

from __future__ import annotations

import codecs
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from netsvc.base.text import escape
from netsvc.cli.errors import ClientError, reason
from netsvc.plan.address import ServerAddress, parse_server

__all__ = ["RemoteServer", "encoding_option", "server_options", "tls_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5 on
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ServerAddress:
        try:
            return parse_server(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _EncodingType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            name = codecs.lookup(value).name
            # str.encode refuses an encoding that is not for text, such as base64; others cannot encode text in parts.
            "a\n".encode(name)
            encoder = codecs.getincrementalencoder(name)("surrogateescape")
            decoder = codecs.getincrementaldecoder(name)("backslashreplace")
            decoder.decode(encoder.encode("a\n") + b"\xff")
        except (LookupError, ValueError, TypeError):
            self.fail(f"{escape(value)} is not a text encoding; use a name such as utf-8, gbk or latin-1", param, ctx)
        return name


@dataclass(frozen=True)
class RemoteServer:
    """The server that the user named, and how to verify it."""

    address: ServerAddress | None
    authority: str | None = None
    insecure: bool = False

    def check(self) -> None:
        """Raise `click.UsageError` if options do not fit the address."""
        if self.authority and self.insecure:
            raise click.UsageError("--ca and --insecure exclude each other; give one of them")
        if (self.authority or self.insecure) and (self.address is None or self.address.scheme != "tls"):
            raise click.UsageError("--ca and --insecure need a tls: address")

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context for a tls: address, None for any other. Raises `ClientError`."""
        if self.address is None or self.address.scheme != "tls":
            return None
        return self.context()

    def context(self) -> ssl.SSLContext:
        """Return the TLS context. Raises `ClientError`."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
        except OSError as error:
            raise ClientError(
                f"--ca {escape(str(self.authority))}: cannot read certificates ({reason(error)})"
            ) from None
        if self.insecure:
            click.echo("netsvc: warning: --insecure: the server is not verified", err=True)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def encoding_option(function: _Function) -> _Function:
    """Add `--encoding`."""
    return click.option(
        "--encoding",
        type=_EncodingType(),
        default="utf-8",
        show_default=True,
        help="Text encoding of the server, such as gbk.",
    )(function)


def tls_options(function: _Function) -> _Function:
    """Add the options of TLS."""
    for decorator in (
        click.option("--insecure", is_flag=True, help="Do not verify the server's TLS certificate."),
        click.option(
            "--ca",
            "authority",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False),
            help="Trust the certificates in this PEM file instead of the system's.",
        ),
    ):
        function = decorator(function)
    return function


def server_options(*, required: bool) -> Callable[[_Function], _Function]:
    """Add the ADDRESS argument and the options of TLS."""

    def decorate(function: _Function) -> _Function:
        metavar = "ADDRESS" if required else "[ADDRESS]"
        return click.argument("address", type=_AddressType(), metavar=metavar, required=required)(tls_options(function))

    return decorate
