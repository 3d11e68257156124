"""Which network addresses may be fetched from: public ones, and those that the rules name."""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from ray_jobs.ingesting.failures import BadUrl, RefusedAddress, UnknownHost

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Addresses that lead to an IPv4 one inside them: NAT64 (RFC 6052) and 6to4 (RFC 3056).
_NAT64 = ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ip_network("2002::/16")


def parse_url(url: str) -> SplitResult:
    """The parts of an http(s) address, its host in ASCII (an international name as IDNA has it).

    Raises:
        BadUrl: It has another scheme, no host, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        if parts.username is not None:
            raise BadUrl("an address with a user name or a password is not fetched")
        if not url.isascii() and parts.hostname:
            host = parts.hostname.encode("idna").decode()
            parts = parts._replace(netloc=f"{host}:{port}" if port else host)
    except ValueError as error:  # UnicodeError too
        raise BadUrl(f"{error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise BadUrl("an address begins with http:// or https:// and names a host")
    return parts


def origin_of(parts: SplitResult) -> str:
    """Scheme, host and port: what robots.txt and limits are about."""
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def resolve(host: str, port: int, allowed: Sequence[Network]) -> str:
    """The address to connect to. Connect to it and not to the name, whose answer may be another one a moment later.

    Raises:
        UnknownHost: The name does not resolve.
        RefusedAddress: Any of its addresses is not a public one.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnknownHost(f"{host} does not resolve: {error}") from error
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for text in found:
        if not is_allowed(ip_address(text.partition("%")[0]), allowed):
            raise RefusedAddress(f"{host} is {text}, which is not a public address (ingest.allow_networks may name it)")
    return found[0]


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether the address is public or within one of the networks."""
    inner = _inner(address)
    if any(candidate in network for candidate in {address, inner} for network in allowed):
        return True
    return inner.is_global and not inner.is_multicast


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return address.sixtofour or address
    return address
