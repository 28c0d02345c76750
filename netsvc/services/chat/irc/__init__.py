"""The IRC protocol of the chat: RFC 1459 and 2812 as modern.ircdocs.horse describes them, and IRCv3."""
