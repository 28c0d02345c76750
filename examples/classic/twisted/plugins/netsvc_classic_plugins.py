"""What twistd finds: names only; the services load when used."""

from netsvc.service import ServicePlugin

daytime = ServicePlugin("daytime", "netsvc_classic.daytime:service", "Tell the date and time as a line (RFC 867)")
qotd = ServicePlugin("qotd", "netsvc_classic.qotd:service", "Send the quote of the day (RFC 865)")
