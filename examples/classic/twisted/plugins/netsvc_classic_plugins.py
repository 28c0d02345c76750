"""What twistd finds: names only; the services load when used."""

from netsvc.service import ServicePlugin

discard = ServicePlugin("discard", "netsvc_classic.discard:service", "Throw everything away (RFC 863)")
daytime = ServicePlugin("daytime", "netsvc_classic.daytime:service", "Tell the date and time as a line (RFC 867)")
time = ServicePlugin("time", "netsvc_classic.time:service", "Tell the time as a number (RFC 868)")
qotd = ServicePlugin("qotd", "netsvc_classic.qotd:service", "Send the quote of the day (RFC 865)")
chargen = ServicePlugin("chargen", "netsvc_classic.chargen:service", "Send a pattern of characters (RFC 864)")
