"""Which addresses may be fetched from: hosts that name private networks, whatever their spelling."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from ray_jobs.ingesting.addresses import is_allowed, origin_of, parse_url, resolve
from ray_jobs.ingesting.failures import BadUrl, RefusedAddress, UnknownHost

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # the metadata service of clouds
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_what_is_not_public_is_refused(text: str) -> None:
    assert not is_allowed(ip_address(text), ())


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_is_public_is_not(text: str) -> None:
    assert is_allowed(ip_address(text), ())


def test_a_named_network_is_allowed_and_no_other() -> None:
    allowed = (ip_network("10.1.0.0/16"),)
    assert is_allowed(ip_address("10.1.2.3"), allowed)
    assert is_allowed(ip_address("::ffff:10.1.2.3"), allowed)
    assert not is_allowed(ip_address("10.2.0.1"), allowed)


def _answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_one_private_answer_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(RefusedAddress, match=r"media\.example is 10\.0\.0\.1.*allow_networks"):
        resolve("media.example", 80, ())
    _answers(monkeypatch, "8.8.8.8", "8.8.4.4")
    assert resolve("media.example", 80, ()) == "8.8.8.8"


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433"])
def test_odd_spellings_of_the_loopback_are_refused(host: str) -> None:
    with pytest.raises((RefusedAddress, UnknownHost)):
        resolve(host, 80, ())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "http:///x",
        "file:///etc/passwd",
        "http://a:0/",
        "http://a:99999/",
        "http://u:p@a/",
        "http://视..频/x",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(url)


def test_origins_keep_scheme_and_port_apart() -> None:
    urls = ["http://a/x", "https://a/x", "http://a:8080/x", "http://[::1]:80/"]
    assert [origin_of(parse_url(url)) for url in urls] == ["http://a", "https://a", "http://a:8080", "http://[::1]:80"]


def test_international_names_are_ascii_on_the_wire() -> None:
    parts = parse_url("https://bücher.example:8443/视频 1.mp4?x=ä")
    assert parts.netloc == "xn--bcher-kva.example:8443"
    assert origin_of(parts) == "https://xn--bcher-kva.example:8443"
