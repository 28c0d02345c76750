"""`twistd words` with the room #bench, for `twistd --python`. WORDS_PORT is where it listens for IRC.

The command itself is of no use on Python 3: its option --group fails, and its checkers of passwords compare the
bytes of their files with the text of the wire. So the room is made here, and everybody is let in.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.application import service
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.internet.defer import Deferred, succeed
from twisted.words import tap
from zope.interface import implementer


@implementer(ICredentialsChecker)
class Anybody:
    """Takes any password."""

    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        return succeed(credentials.username)


options: Any = tap.Options()
options.parseOptions(["--irc-port", f"tcp:{os.environ['WORDS_PORT']}:interface=127.0.0.1:backlog=1024"])
options.addChecker(Anybody())
options["groups"].append("bench")

application = service.Application("words")
tap.makeService(options).setServiceParent(application)
