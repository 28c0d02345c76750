"""TLS for any stream protocol: `tls:` addresses, whose certificates are renewed without a restart."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IProtocolNegotiationFactory,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from netsvc.listen.certificates import (
    MOST_CERTIFICATES,
    CertificateAndKey,
    CertificateError,
    CertificateFiles,
    PreloadedTLS,
    escape_path,
    find_certificates,
    read_certificate,
)
from netsvc.plan.address import TLS
from netsvc.reactor.streams import TCPPort
from netsvc.reactor.tls import TLSTransport
from netsvc.reactor.tls_socket import encrypt

#: Seconds between two checks of the files; they are checked only when a connection is accepted.
LOOK_INTERVAL = 1.0
#: The most certificates read in one check, as each blocks the event loop for half a millisecond.
MOST_AT_ONCE = 50

#: Ciphers of TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325, section 4.2). All of TLS 1.3 are.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_DEFAULT = "default"

_log = Logger(namespace="netsvc.tls")


def make_context(
    pair: CertificateAndKey,
    choose: Callable[[SSL.Connection], None] | None = None,
    clients: Sequence[x509.Certificate] = (),
) -> SSL.Context:
    """Create the OpenSSL context for a certificate and key. Raises `OpenSSL.SSL.Error` if OpenSSL refuses them.

    `choose` is called with each new connection when the requested server name is known. With `clients`, only clients
    whose certificate is signed by one of these are served.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    # TLS 1.0 and 1.1 must not be used (RFC 8996, sections 4 and 5).
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # Free OpenSSL's buffers of a connection, 34 KiB, while they are empty.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_cipher_list(_CIPHERS)
    # Clients keep their sessions in tickets.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(pair.chain[0])
    for certificate in pair.chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(pair.key)
    context.set_alpn_select_callback(_select_protocol)
    if choose is not None:
        context.set_tlsext_servername_callback(choose)
    if clients:
        _demand_certificate(context, clients)
    return context


def _demand_certificate(context: SSL.Context, clients: Sequence[x509.Certificate]) -> None:
    store = context.get_cert_store()
    for certificate in clients:
        if store is not None:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        context.add_client_ca(certificate)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    # Required by OpenSSL to resume a session of a client that it has verified.
    context.set_session_id(b"netsvc")


def _select_protocol(connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Choose an ALPN protocol by the order of the service's factory; a factory that names none accepts any."""
    wanted = IProtocolNegotiationFactory(connection.get_app_data().factory.wrappedFactory, None)
    acceptable = () if wanted is None else wanted.acceptableProtocols()
    for name in acceptable:
        if name in offered:
            return name
    if not acceptable:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    # Sends the alert no_application_protocol (RFC 7301, section 3.2), and logs no traceback.
    raise SSL.Error([("", "", "no application protocol in common")])


class _LoadedCertificate:
    """A certificate in force, with the state of its files when they were last read or tried."""

    def __init__(
        self,
        files: CertificateFiles,
        choose: Callable[[SSL.Connection], None] | None = None,
        clients: Sequence[x509.Certificate] = (),
    ) -> None:
        self.files = files
        self._choose = choose
        self._clients = clients
        self.pair: CertificateAndKey | None = None
        self.context: Any = None
        #: The stamp of the files when they were last tried, and whether that content is in force.
        self.stamp: Any = None
        self.current = False
        #: The number of the check that tried them last.
        self.tried = 0
        #: The last logged error, and the stamp of the files that it was about.
        self.last_error: Any = None

    def use(self, pair: CertificateAndKey) -> None:
        """Use a certificate and key from now on. Raises `CertificateError`, and changes nothing, on failure."""
        try:
            self.context = make_context(pair, self._choose, self._clients)
        except SSL.Error as error:
            raise CertificateError(f"{escape_path(self.files.cert)}: OpenSSL refuses it ({_reason(error)})") from None
        self.pair = pair

    def read(self) -> None:
        """Read the files and put them in force. Raises `CertificateError`."""
        self.current = False
        self.stamp = _stamp(self.files)
        self.use(read_certificate(self.files))
        self.current = True

    def is_stale(self) -> bool:
        """Return whether the files must be read again."""
        stamp = _stamp(self.files)
        if stamp == self.stamp and len(stamp[0]) == 1:
            # The file is still missing, which was logged already.
            return False
        # Unusable files are tried each time: a file that was being written may have the same stamp afterwards.
        return not self.current or stamp != self.stamp

    def warn_of_expiry(self) -> None:
        """Log a warning if the certificate is not valid now."""
        if self.pair is None:
            return
        now = datetime.datetime.now(datetime.UTC)
        if self.pair.expires < now:
            what, date = "expired on", self.pair.expires
        elif self.pair.begins > now:
            what, date = "is not valid before", self.pair.begins
        else:
            return
        _log.warn(
            "{path}: the certificate {what} {date:%Y-%m-%d %H:%M} UTC; clients will refuse it",
            path=escape_path(self.files.cert),
            what=what,
            date=date,
        )


def _reason(error: SSL.Error) -> str:
    return str(error.args[0][-1][-1]) if error.args and error.args[0] else "no reason given"


def _stamp(files: CertificateFiles) -> tuple[tuple[int, ...], ...]:
    """Return a value that changes when the files of a certificate change, without reading them."""
    return tuple(map(_file_stamp, files.paths()))


def _file_stamp(path: str) -> tuple[int, ...]:
    """Return three numbers for a file, or only the error number if it is not accessible."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def check_tls(tls: TLS) -> None:
    """Raise `CertificateError` if a certificate of a `tls:` address is missing or cannot be used."""
    for files in find_certificates(tls):
        _LoadedCertificate(files).read()


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificates in force for one `tls:` address.

    In a directory (see `netsvc.listen.certificates.find_certificates`), the server name that a client requests (SNI,
    RFC 6066, section 3) selects the certificate: one whose subjectAltName has that name, or else `*.` in place of its
    first label. A client that requests no name, or an unknown one, gets the certificate named `default`, or the first
    by file name.

    The files are checked when a connection is accepted, at most once in `LOOK_INTERVAL` seconds of `clock`. Renewed
    certificates are used from then on; at most `MOST_AT_ONCE` are read in one check, the rest in the next. If a file
    cannot be used, that is logged once for each change, and the previous certificate stays in force. A certificate
    whose files were removed also stays, until more than `MOST_CERTIFICATES` are in force; then the ones removed
    first are dropped.

    With `clients`, a client must present a certificate that is signed by one of these.

    Raises `CertificateError` if a certificate cannot be used at the start. With `PreloadedTLS`, whose files may not be
    readable any more, the preloaded contents are used instead.
    """

    def __init__(self, tls: TLS, clock: Any, clients: Sequence[x509.Certificate] = ()) -> None:
        self._tls = tls
        self._clients = clients
        self._clock = clock
        self._looked = clock.seconds()
        self._looks = 0
        #: Certificates in force whose files were removed, in the order of removal.
        self._gone: dict[str, None] = {}
        self._last_error: str | None = None
        self._by_file_name: dict[str, _LoadedCertificate] = {}
        self._by_host_name: dict[str, _LoadedCertificate] = {}
        self._chooses = None if tls.directory is None else self._choose
        carried = tls.contents if isinstance(tls, PreloadedTLS) else {}
        for files in find_certificates(tls, carried):
            certificate = self._by_file_name[files.name] = _LoadedCertificate(files, self._chooses, self._clients)
            if carried:
                certificate.use(read_certificate(files, carried))
            else:
                certificate.read()
        self._index()
        if carried:
            # The process that preloaded them has logged the warnings.
            self.look()
        else:
            self.warn_of_expiry()

    def wrap(self, factory: IProtocolFactory) -> TLSMemoryBIOFactory:
        """Return a factory that wraps the protocols of `factory` in TLS."""
        wrapped = TLSMemoryBIOFactory(self, False, factory, self._clock)
        wrapped.protocol = TLSTransport
        return wrapped

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Create the OpenSSL connection; see `IOpenSSLServerConnectionCreator`."""
        return self.connect(None)

    def connect(self, sock: Any) -> SSL.Connection:
        """Create the OpenSSL connection of a socket; with None, one that reads and writes memory."""
        # The system's clock may be set back.
        if not 0 <= self._clock.seconds() - self._looked < LOOK_INTERVAL:
            self.look()
        return SSL.Connection(self._default.context, sock)

    def warn_of_expiry(self) -> None:
        """Log a warning for each certificate that is not valid now."""
        for certificate in self._by_file_name.values():
            certificate.warn_of_expiry()

    def look(self) -> None:
        """Check the files now, and load renewed certificates; see `MOST_AT_ONCE`."""
        self._looked = self._clock.seconds()
        self._looks += 1
        stale: list[_LoadedCertificate] = []
        for files in self._files_in_use():
            certificate = self._by_file_name.setdefault(
                files.name, _LoadedCertificate(files, self._chooses, self._clients)
            )
            certificate.files = files
            if certificate.is_stale():
                stale.append(certificate)
        # Longest untried first, so that many unusable certificates do not keep others from being read.
        stale.sort(key=lambda each: each.tried)
        changed = False
        for certificate in stale[:MOST_AT_ONCE]:
            certificate.tried = self._looks
            changed |= self._renew(certificate)
        if changed:
            self._drop_removed()
            self._index()

    def _drop_removed(self) -> None:
        """Drop removed certificates beyond the limit, the first removed first."""
        in_force = sum(each.pair is not None for each in self._by_file_name.values())
        # Only removed ones beyond the limit are dropped, so there is always one left to serve.
        beyond = list(self._gone)[: max(0, in_force - MOST_CERTIFICATES)]
        for name in beyond:
            del self._by_file_name[name], self._gone[name]
        if beyond:
            _log.info("{count} certificates whose files were removed are no longer in use", count=len(beyond))

    def _files_in_use(self) -> list[CertificateFiles]:
        """List the files found, and those in use but removed; nothing if the directory cannot be read."""
        try:
            found = {files.name: files for files in find_certificates(self._tls)}
        except CertificateError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                _log.error("{reason}; the previous certificates stay in use", reason=self._last_error)
            return []
        self._last_error = None
        for name, certificate in list(self._by_file_name.items()):
            if name in found:
                self._gone.pop(name, None)
            elif certificate.pair is None:
                del self._by_file_name[name]
            else:
                self._gone.setdefault(name)
        return list(({name: each.files for name, each in self._by_file_name.items()} | found).values())

    @staticmethod
    def _renew(certificate: _LoadedCertificate) -> bool:
        before = certificate.pair
        try:
            certificate.read()
        except CertificateError as error:
            last_error = (str(error), certificate.stamp)
            if last_error != certificate.last_error:
                certificate.last_error = last_error
                what = "the previous certificate stays in use" if before else "it is not used"
                _log.error("{reason}; {what}", reason=str(error), what=what)
            return False
        certificate.last_error = None
        pair: Any = certificate.pair
        if before is None or before.chain != pair.chain:
            _log.info(
                "{path} is now in use, valid until {date:%Y-%m-%d}",
                path=escape_path(certificate.files.cert),
                date=pair.expires,
            )
            certificate.warn_of_expiry()
        return True

    def _index(self) -> None:
        """Index the certificates by host name."""
        in_force = [self._by_file_name[name] for name in sorted(self._by_file_name) if self._by_file_name[name].context]
        # If several have the same name, the first is used.
        self._by_host_name = {name: each for each in reversed(in_force) for name in each.pair.names}  # type: ignore[union-attr]
        self._default = next((each for each in in_force if each.files.name == _DEFAULT), in_force[0])

    def _choose(self, connection: SSL.Connection) -> None:
        """Switch to the certificate of the server name that a client requests."""
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        found = self._by_host_name.get(name) or self._by_host_name.get(f"*.{name.partition('.')[2]}")
        if found is not None:
            connection.set_context(found.context)


def inside_tls(factory: Any, certificates: Certificates) -> Any:
    """Put TLS around the protocols of a factory, inside of it if it has an `envelope`; return what a port serves."""
    if not hasattr(factory, "envelope"):
        return certificates.wrap(factory)
    factory.envelope = certificates.wrap
    return factory


def use_tls(port: Any, factory: Any, certificates: Certificates | None) -> None:
    """Use TLS with these certificates, or with None no TLS, for the connections that a port accepts from now on.

    `factory` is what the port serves behind a PROXY header, if there is one. If it has an `envelope`, and is directly
    at a TCP port of the fast reactor, the transports encrypt; otherwise the envelope does, a layer above them.
    """
    if not hasattr(factory, "envelope"):
        return
    is_direct = isinstance(port, TCPPort) and port.factory is factory
    if is_direct:
        encrypt(port, None if certificates is None else certificates.connect)
    factory.envelope = None if is_direct or certificates is None else certificates.wrap
