"""What the server supports (ISUPPORT), exactly."""

from __future__ import annotations

from netsvc.services.chat.irc.form import MODE_LETTERS
from netsvc.services.chat.moderation import LONGEST_REASON
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.rules import LONGEST_KEY, MOST_BANS, VALUED_MODES

__all__ = ["CHANNEL_MODES", "LIST_MODES", "MOST_HISTORY", "MOST_MONITORED", "MOST_TARGETS", "USER_MODES", "support"]

#: Modes that are lists, and those of members.
LIST_MODES = "beI"
#: Bot, invisible, operator.
USER_MODES = "Bio"
#: Receivers of one message, names that a client watches, and messages in one answer.
MOST_TARGETS, MOST_MONITORED, MOST_HISTORY = 4, 100, 200

_FLAGS = "".join(sorted(letter for name, letter in MODE_LETTERS.items() if name not in VALUED_MODES))
CHANNEL_MODES = "".join(sorted(f"{LIST_MODES}kl{_FLAGS}ov"))


def support(options: ChatOptions) -> list[str]:
    """Return the tokens of RPL_ISUPPORT."""
    length = options["name-length"]
    targets = [f"{command}:{MOST_TARGETS}" for command in ("KICK", "NAMES", "NOTICE", "PRIVMSG", "TAGMSG")]
    return [
        f"AWAYLEN={LONGEST_REASON}",
        "BOT=B",
        "CASEMAPPING=ascii",
        f"CHANLIMIT=#:{options['member-rooms']}",
        f"CHANMODES={LIST_MODES},k,l,{_FLAGS}",
        f"CHANNELLEN={length + 1}",
        "CHANTYPES=#",
        f"CHATHISTORY={MOST_HISTORY}",
        "ELIST=CMNTU",
        "EXCEPTS=e",
        "EXTBAN=~,am",
        "INVEX=I",
        f"KEYLEN={LONGEST_KEY}",
        f"KICKLEN={LONGEST_REASON}",
        f"MAXLIST={LIST_MODES}:{MOST_BANS}",
        f"MODES={MOST_TARGETS}",
        f"MONITOR={MOST_MONITORED}",
        "MSGREFTYPES=msgid,timestamp",
        f"NAMELEN={LONGEST_REASON}",
        f"NETWORK={options['irc-name']}",
        f"NICKLEN={length}",
        "PREFIX=(ov)@+",
        "SAFELIST",
        f"TARGMAX={','.join(targets)},JOIN:,PART:,WHOIS:1",
        f"TOPICLEN={options['topic-length']}",
        "UTF8ONLY",
        "WHOX",
    ]
