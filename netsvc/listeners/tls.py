"""TLS of our own for any stream protocol: `tls:` addresses, whose certificates are renewed without a restart."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet._producer_helpers import _PullToPush
from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IPullProducer,
)
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from netsvc.address import TLS
from netsvc.listeners.certificates import (
    MOST_CERTIFICATES,
    CarriedTLS,
    CertificateError,
    Identity,
    Place,
    find_places,
    read_identity,
    shown,
)

__all__ = ["LOOK_INTERVAL", "Certificates", "TLSTransport", "check_tls", "make_context"]

#: Seconds between two looks at the files, and only when connections come.
LOOK_INTERVAL = 1.0
#: Certificates read in one look, as nothing is served meanwhile: each takes half a millisecond.
MOST_AT_ONCE = 50

#: Of TLS 1.2 those with forward secrecy and authenticated encryption (RFC 9325, section 4.2); those of TLS 1.3 all are.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_DEFAULT = "default"

_log = Logger(namespace="netsvc.tls")


class TLSTransport(BufferingTLSTransport):
    """Twisted's TLS transport, for clients that say farewell (close_notify) before they have got everything.

    Twisted answers with a farewell of ours, at once, as TLS 1.2 asks (RFC 5246, section 7.2.1). A client of
    TLS 1.3 may go on to read (RFC 8446, section 6.1), and takes what it has got by then for the whole.
    """

    def _shutdownTLS(self) -> None:
        if self._tlsConnection.get_shutdown() & SSL.RECEIVED_SHUTDOWN and not self.disconnecting:
            # What was written in this turn waits there for more.
            self._aggregator.flush()
            producer = None if self._producer is None else self._producer._producer
            if isinstance(producer, _PullToPush) or IPullProducer.providedBy(producer):
                # There would be more to send, and no way to do so.
                inner: Any = self.transport
                inner.abortConnection()
                return
        super()._shutdownTLS()


def make_context(
    identity: Identity,
    choose: Callable[[SSL.Connection], None] | None = None,
    clients: Sequence[x509.Certificate] = (),
) -> SSL.Context:
    """Make what OpenSSL needs to serve as `identity`. Raises `OpenSSL.SSL.Error` if it will not have it.

    `choose` is called with each connection that begins with this, when it is known which name the client asks for.
    With `clients`, no client is served but those that have a certificate which one of these has signed.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    # TLS 1.0 and 1.1 must not be used (RFC 8996, sections 4 and 5).
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # OpenSSL keeps its buffers for a connection, 34 KiB, only while there is something in them.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_cipher_list(_CIPHERS)
    # Sessions are kept by the clients, in tickets.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(identity.chain[0])
    for certificate in identity.chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(identity.key)
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
    # OpenSSL resumes no session of a client that it has verified without a name for what it was verified for.
    context.set_session_id(b"netsvc")


def _select_protocol(connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """Choose by ALPN among what the service's factory speaks, in its order; one that names nothing speaks anything."""
    wanted = IProtocolNegotiationFactory(connection.get_app_data().factory.wrappedFactory, None)
    acceptable = () if wanted is None else wanted.acceptableProtocols()
    for name in acceptable:
        if name in offered:
            return name
    if not acceptable:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    # Makes it the alert no_application_protocol (RFC 7301, section 3.2), and no traceback of ours.
    raise SSL.Error([("", "", "no application protocol in common")])


class _Certificate:
    """One certificate in force, and what its files were when they were read or tried last."""

    def __init__(
        self,
        place: Place,
        choose: Callable[[SSL.Connection], None] | None = None,
        clients: Sequence[x509.Certificate] = (),
    ) -> None:
        self.place = place
        self._choose = choose
        self._clients = clients
        self.identity: Identity | None = None
        self.context: Any = None
        #: What the files were, and whether that is in force.
        self.stamp: Any = None
        self.current = False
        #: The look that tried them last.
        self.tried = 0
        #: What was said last of files that cannot be used, and of which.
        self.complaint: Any = None

    def use(self, identity: Identity) -> None:
        """Put an identity in force. Raises `CertificateError`, and changes nothing, if OpenSSL will not have it."""
        try:
            self.context = make_context(identity, self._choose, self._clients)
        except SSL.Error as error:
            raise CertificateError(f"{shown(self.place.cert)}: OpenSSL refuses it ({_reason(error)})") from None
        self.identity = identity

    def read(self) -> None:
        """Read the files and put them in force. Raises `CertificateError`."""
        self.current = False
        self.stamp = _stamp(self.place)
        self.use(read_identity(self.place))
        self.current = True

    def is_stale(self) -> bool:
        """Tell whether the files are to be read."""
        stamp = _stamp(self.place)
        if stamp == self.stamp and len(stamp[0]) == 1:
            # There is nothing, which was said already.
            return False
        # What could not be used is tried each time: a file that was being written need not look different after.
        return not self.current or stamp != self.stamp

    def warn_of_expiry(self) -> None:
        """Log that the certificate is not valid, if that is so."""
        if self.identity is None:
            return
        now = datetime.datetime.now(datetime.UTC)
        if self.identity.expires < now:
            what, date = "expired on", self.identity.expires
        elif self.identity.begins > now:
            what, date = "is not valid before", self.identity.begins
        else:
            return
        _log.warn(
            "{path}: the certificate {what} {date:%Y-%m-%d %H:%M} UTC; clients will refuse it",
            path=shown(self.place.cert),
            what=what,
            date=date,
        )


def _reason(error: SSL.Error) -> str:
    return str(error.args[0][-1][-1]) if error.args and error.args[0] else "for no reason that it tells"


def _stamp(place: Place) -> tuple[tuple[int, ...], ...]:
    """Tell the files of a place from what they were and will be, without reading them."""
    return tuple(map(_file_stamp, place.files()))


def _file_stamp(path: str) -> tuple[int, ...]:
    """Return three numbers for a file, and one if there is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def check_tls(tls: TLS) -> None:
    """Raise `CertificateError` if a certificate of a `tls:` address is missing or cannot be used."""
    for place in find_places(tls):
        _Certificate(place).read()


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificates of one `tls:` address, those in force now.

    In a directory (see `netsvc.listeners.certificates.find_places`) the name that a client asks for (SNI, RFC 6066,
    section 3) chooses: one whose subjectAltName has that name, or else `*.` for its first label. A client that asks
    for no name, or for an unknown one, gets the certificate called `default`, or the first by the names of the files.

    The files are looked at when a connection comes, at most once in `LOOK_INTERVAL` seconds of `clock`. What has been
    renewed is used from then on; beyond `MOST_AT_ONCE`, the rest is read at the next look. What cannot be used is
    logged, once for each change, and the certificate before it stays; so does one whose files are gone, until there
    are more than `MOST_CERTIFICATES` in force: then those that went first are forgotten.

    With `clients`, whoever comes has to show a certificate that one of these has signed.

    Raises `CertificateError` if a certificate cannot be used to begin with; but with `CarriedTLS`, where it may be
    that the files can no longer be read, what has been carried along is used instead.
    """

    def __init__(self, tls: TLS, clock: Any, clients: Sequence[x509.Certificate] = ()) -> None:
        self._tls = tls
        self._clients = clients
        self._clock = clock
        self._looked = clock.seconds()
        self._looks = 0
        #: What is in force though it is gone from the directory, in the order in which it went.
        self._gone: dict[str, None] = {}
        self._complaint: str | None = None
        self._by_place: dict[str, _Certificate] = {}
        self._by_name: dict[str, _Certificate] = {}
        self._chooses = None if tls.directory is None else self._choose
        carried = tls.contents if isinstance(tls, CarriedTLS) else {}
        for place in find_places(tls, carried):
            certificate = self._by_place[place.name] = _Certificate(place, self._chooses, self._clients)
            if carried:
                certificate.use(read_identity(place, carried))
            else:
                certificate.read()
        self._index()
        if carried:
            # Whoever carried them has warned of them.
            self.look()
        else:
            self.warn_of_expiry()

    def wrap(self, factory: IProtocolFactory) -> TLSMemoryBIOFactory:
        """Return a factory that builds what `factory` builds, inside TLS."""
        wrapped = TLSMemoryBIOFactory(self, False, factory, self._clock)
        wrapped.protocol = TLSTransport
        return wrapped

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Make OpenSSL's part of a connection; see `IOpenSSLServerConnectionCreator`."""
        # The system's clock may be set back.
        if not 0 <= self._clock.seconds() - self._looked < LOOK_INTERVAL:
            self.look()
        return SSL.Connection(self._default.context)

    def warn_of_expiry(self) -> None:
        """Log which certificates are not valid now."""
        for certificate in self._by_place.values():
            certificate.warn_of_expiry()

    def look(self) -> None:
        """Look at the files now, and take what has been renewed; see `MOST_AT_ONCE`."""
        self._looked = self._clock.seconds()
        self._looks += 1
        stale: list[_Certificate] = []
        for place in self._places():
            certificate = self._by_place.setdefault(place.name, _Certificate(place, self._chooses, self._clients))
            certificate.place = place
            if certificate.is_stale():
                stale.append(certificate)
        # Many that never can be used must not keep the others from being read.
        stale.sort(key=lambda each: each.tried)
        changed = False
        for certificate in stale[:MOST_AT_ONCE]:
            certificate.tried = self._looks
            changed |= self._renew(certificate)
        if changed:
            self._forget()
            self._index()

    def _forget(self) -> None:
        """Forget of those that are gone what is beyond the limit."""
        in_force = sum(each.identity is not None for each in self._by_place.values())
        # So there is always another one to serve.
        beyond = list(self._gone)[: max(0, in_force - MOST_CERTIFICATES)]
        for name in beyond:
            del self._by_place[name], self._gone[name]
        if beyond:
            _log.info("{count} certificates whose files are gone are not in use any more", count=len(beyond))

    def _places(self) -> list[Place]:
        """List what there is, and what is in use though it is gone; nothing, if the directory cannot be read."""
        try:
            found = {place.name: place for place in find_places(self._tls)}
        except CertificateError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("{reason}; the certificates that were there stay in use", reason=self._complaint)
            return []
        self._complaint = None
        for name, certificate in list(self._by_place.items()):
            if name in found:
                self._gone.pop(name, None)
            elif certificate.identity is None:
                del self._by_place[name]
            else:
                self._gone.setdefault(name)
        return list(({name: each.place for name, each in self._by_place.items()} | found).values())

    @staticmethod
    def _renew(certificate: _Certificate) -> bool:
        before = certificate.identity
        try:
            certificate.read()
        except CertificateError as error:
            complaint = (str(error), certificate.stamp)
            if complaint != certificate.complaint:
                certificate.complaint = complaint
                what = "the certificate before it stays in use" if before else "it is not used"
                _log.error("{reason}; {what}", reason=str(error), what=what)
            return False
        certificate.complaint = None
        identity: Any = certificate.identity
        if before is None or before.chain != identity.chain:
            _log.info(
                "{path} is in use now, and valid until {date:%Y-%m-%d}",
                path=shown(certificate.place.cert),
                date=identity.expires,
            )
            certificate.warn_of_expiry()
        return True

    def _index(self) -> None:
        """Find out who serves which name."""
        in_force = [self._by_place[name] for name in sorted(self._by_place) if self._by_place[name].context]
        # Of several for one name it is the first.
        self._by_name = {name: each for each in reversed(in_force) for name in each.identity.names}  # type: ignore[union-attr]
        self._default = next((each for each in in_force if each.place.name == _DEFAULT), in_force[0])

    def _choose(self, connection: SSL.Connection) -> None:
        """Change to the certificate of the name that a client asks for."""
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        found = self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")
        if found is not None:
            connection.set_context(found.context)
