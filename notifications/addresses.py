"""Where a webhook may go: only to public addresses, checked on the very socket that is about to be connected.

A name is resolved once and each address is judged as it is dialled, so a name that answers differently the second time
(DNS rebinding) gains nothing.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

_NAT64 = ip_network("64:ff9b::/96")
URL_CHARACTERS_MAX = 500


class ForbiddenAddress(OSError):
    """The address is not one that the public can reach: private, loopback, link-local, metadata, and the like."""


def is_public(address: str) -> bool:
    """Tell whether an IP address, whatever it is wrapped in, belongs to the public Internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = _wrapped(ip)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_reserved or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def _wrapped(ip: IPv6Address) -> IPv4Address | None:
    """Take out the IPv4 address that a v6 address stands for: mapped, 6to4, Teredo, NAT64."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def may_connect(address: str) -> bool:
    if settings.WEBHOOK_ALLOW_LOOPBACK and ip_address(address.partition("%")[0]).is_loopback:
        return True
    return is_public(address)


def checked_socket(address_info: Any) -> socket.socket:
    """Make the socket for one resolved address, if it may be connected at all.

    Raises:
        ForbiddenAddress: it may not.
    """
    family, kind, protocol, _, target = address_info
    if not may_connect(str(target[0])):
        raise ForbiddenAddress("the address is not public")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def check_url(url: str) -> str:
    """Return the URL if an endpoint may have it. Names are judged again, by their addresses, with every call.

    Raises:
        ValueError: with what is wrong.
    """
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(f"Give an address of at most {URL_CHARACTERS_MAX} visible ASCII characters.")
    parts = urlsplit(url)
    host = parts.hostname or ""
    _ = parts.port  # A port that is none is a ValueError as well.
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("Leave user, password and fragment out; the signature says who is calling.")
    local = settings.WEBHOOK_ALLOW_LOOPBACK and (host == "localhost" or _is_loopback(host))
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("Give an https:// address.")
    if not host or (not local and _is_private_name(host)):
        raise ValueError("Give an address that is reachable from the Internet.")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private_name(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return "." not in host.rstrip(".") or host.rstrip(".").endswith((".localhost", ".local", ".internal"))
