"""The address of the admin server: where it may listen, and how its clients are authenticated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cryptography import x509

from netsvc.base.tokens import read_token
from netsvc.listen.certificates import CertificateError, escape_path, read_file
from netsvc.listen.opening import check_address
from netsvc.listen.sockets import resolve, unix_path
from netsvc.plan.address import Address, is_reachable, split_endpoint
from netsvc.plan.plan import AdminUse

#: What `localhost` and a bare port stand for.
LOCALHOST = ("127.0.0.1", "::1")
#: Certificates that sign certificates of clients.
MOST_CLIENT_CERTIFICATES = 100

_SCHEMES = ("inet", "tcp", "tcp6", "unix", "systemd")


def check_admin(use: AdminUse) -> list[str]:
    """Return a line for each reason why it cannot be served. Reads the files that it names, opens no port."""
    try:
        return [f"{use.origin}admin cannot listen on {use.address.text}: {each}" for each in _errors(use)]
    except ValueError as error:
        return [f"{use.origin}admin cannot listen on {use.address.text}: {error}"]


def _errors(use: AdminUse) -> list[str]:
    address = use.address
    if address.kind != "stream" or address.scheme not in _SCHEMES:
        return ["it takes a port, HOST:PORT, unix:PATH or tls:PORT:…"]
    if address.proxy is not None or address.limits:
        return ["proxy: and guard: are for services only; remove them"]
    if use.client_ca is not None and address.tls is None:
        return ["client certificates need TLS; write tls:PORT:cert=FILE:key=FILE"]
    if address.scheme == "unix" and unix_path(address).startswith("@") and use.token_file is None:
        return [
            "every user of this machine can reach an abstract socket; use unix:PATH, or set a token file "
            "(--admin-token)"
        ]
    if is_exposed(address) and use.token_file is None and use.client_ca is None:
        return [
            "other machines can reach it; listen on localhost or unix:PATH, or set a token file (--admin-token) "
            "or, with tls:, a client CA (--admin-ca)"
        ]
    if use.token_file is not None:
        read_token(use.token_file)
    if use.client_ca is not None:
        read_clients(use.client_ca)
    check_address(address)
    return []


def is_exposed(address: Address) -> bool:
    """Return whether other machines can reach an address; in doubt they can."""
    return not _is_localhost(address) and is_reachable(address)


def _is_localhost(address: Address) -> bool:
    """Return whether it is `localhost` or a bare port; a bare port of `tls:` is for other machines."""
    name = (address.host or "").lower()
    return address.scheme == "inet" and (name == "localhost" or (not name and address.tls is None))


def places(address: Address) -> Sequence[Address]:
    """List the addresses to open for an admin address. The first is required, others only where the system has them."""
    if address.scheme == "unix" and not _has_mode(address):
        # Twisted's default mode gives every user of the machine access.
        return [replace(address, text=f"{address.text}:mode=600", endpoint=f"{address.endpoint}:mode=600")]
    if _is_localhost(address):
        return [replace(address, host=host) for host in LOCALHOST]
    return resolve(address)


def _has_mode(address: Address) -> bool:
    positional, named = split_endpoint(address.endpoint)
    return "mode" in named or len(positional) > 2 or unix_path(address).startswith("@")


def read_clients(path: str) -> list[x509.Certificate]:
    """Read the certificates (PEM) that sign clients' certificates. Raises `ValueError` with a line about the file."""
    data = read_file(path)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CertificateError(f"{escape_path(path)}: no certificate in PEM form") from None
    if len(found) > MOST_CLIENT_CERTIFICATES:
        raise CertificateError(f"{escape_path(path)}: more than {MOST_CLIENT_CERTIFICATES} certificates")
    return found
