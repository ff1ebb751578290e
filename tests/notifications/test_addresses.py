"""No webhook reaches an address that the public cannot: by name, by number, wrapped, or by a name that changes."""

import asyncio
import socket

import aiohttp
import pytest

from notifications.addresses import ForbiddenAddress, check_url, checked_socket, is_public

FORBIDDEN = [
    "127.0.0.1", "127.9.9.9", ".".join("0000"), "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1",
    "::127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1",
    "2001:0:53aa:64c:0:7fff:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_public_gets_no_socket(address):
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(ForbiddenAddress):
        checked_socket((family, socket.SOCK_STREAM, 0, "", (address, 443)))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_a_public_address_is_one(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook", "ftp://example.com/", "https://", "https:///hook", "https://localhost/", "https://intranet/",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest/meta-data",
        "https://user:password@example.com/", "https://example.com/#part", "https://example.com:99999/",
        "https://printer.local/", "https://a.localhost./", "https://metadata.google.internal/", "https://exämple.com/",
        "https://example.com/a b", "https://example.com\\@10.0.0.1/", "javascript:alert(1)",
        "https://" + "a" * 500 + ".com/",
    ],
)  # fmt: skip
def test_an_address_that_no_endpoint_may_have(url):
    with pytest.raises(ValueError, match=r"."):
        check_url(url)


def test_ordinary_addresses_pass_and_the_loopback_only_where_it_is_allowed(settings):
    assert check_url("https://hooks.example.com:8443/bank?x=1") == "https://hooks.example.com:8443/bank?x=1"
    with pytest.raises(ValueError, match="https"):
        check_url("http://127.0.0.1:9000/")

    settings.WEBHOOK_ALLOW_LOOPBACK = True

    assert check_url("http://127.0.0.1:9000/") == "http://127.0.0.1:9000/"
    with pytest.raises(ValueError, match="https"):
        check_url("http://10.0.0.1/")
    with pytest.raises(ForbiddenAddress):
        checked_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 443)))


@pytest.mark.parametrize("host", ["hooks.example.com", "127.0.0.1", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"])
def test_what_is_dialled_is_what_is_checked(host):
    """A listener on the loopback sees no connection, whatever name led there: this is where rebinding ends."""

    class Resolver(aiohttp.abc.AbstractResolver):
        async def resolve(self, name, port=0, family=socket.AF_INET):
            return [
                {"hostname": name, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            ]

        async def close(self):
            pass

    async def run():
        reached = []

        async def serve(reader, writer):
            reached.append(writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connector = aiohttp.TCPConnector(socket_factory=checked_socket, resolver=Resolver())
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises((OSError, aiohttp.ClientError)):
                await session.post(f"http://{host}:{port}/", data=b"x")
        server.close()
        return reached

    assert asyncio.run(run()) == []
