"""Mail addresses, addresses of machines and phone numbers give way to ones that are nobody's."""

import ipaddress
import re
from collections.abc import Callable
from functools import partial

from datatrove.pipeline.formatters.base import BaseFormatter

# Names, addresses and numbers that are reserved for examples: RFC 2606, RFC 5737, RFC 3849, and 555-0100 of the North
# American Numbering Plan. One for all, so that texts that differ in them alone become copies.
MAIL, IPV4, IPV6, PHONE = "email@example.com", "192.0.2.1", "2001:db8::1", "202-555-0100"

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all IPv6 addresses that are assigned: RFC 4291

# Every repetition has a bound, and a match begins only where a word does: the time is linear in the text.
_LOCAL = "A-Za-z0-9._%+-"
PATTERNS = {
    "emails": re.compile(
        rf"(?<![{_LOCAL}])[A-Za-z0-9][{_LOCAL}]{{0,63}}@(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?![\w-])"
    ),
    "ip addresses": re.compile(
        r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)|(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
    ),
    # With a country's code, or as in North America: in full, with its separators.
    "phone numbers": re.compile(
        r"(?<![\w.+/-])(?:\+[1-9](?:[ .-]?\(?\d\)?){7,14}|(?:1[ .-])?"
        r"(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4})(?![\w-]|\.\d)"
    ),
}


def _public(address: str) -> str | None:
    """What takes an address' place; None where it is none, or nobody's, such as 127.0.0.1."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if found.version == 6 and found not in GLOBAL_UNICAST:  # such as a::b, which is rather C++
        return None
    return (IPV4 if found.version == 4 else IPV6) if found.is_global else None


REPLACED: dict[str, Callable[[str], str | None]] = {
    "emails": lambda _: MAIL,
    "ip addresses": _public,
    "phone numbers": lambda _: PHONE,
}


class PersonalData(BaseFormatter):
    """Replaces what of a text is an address or a number of somebody, and counts them."""

    name = "personal data"

    def format(self, text: str) -> str:
        for kind, pattern in PATTERNS.items():
            text = pattern.sub(partial(self._instead, kind), text)
        return text

    def _instead(self, kind: str, found: re.Match[str]) -> str:
        instead = REPLACED[kind](found[0])
        if instead is None:
            return found[0]
        self.stat_update(kind)
        return instead
