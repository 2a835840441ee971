"""Fetching what somebody else chose: nothing private is reached, whatever names, redirects and spellings say."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import web

from shared.addresses import FetchRefusedError, is_public, literal, private_hosts
from shared.settings import Settings
from tests import files
from tests.conftest import Stack
from tests.receiver import ROOT, Certified, Receiver, needs_openssl
from worker.documents.web import WebPages
from worker.fetch import Fetched, Fetcher, FetchFailedError
from worker.tools.base import ToolContext, call_tool
from worker.tools.web import fetch_url

SETTINGS = Settings(fetch_seconds=5.0, fetch_bytes=100_000)
PUBLIC = "93.184.215.14"


class Names:
    """A name server of our own: each question takes the next of its answers, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        given = self.answers.get(host)
        if given is None:
            raise socket.gaierror("no such name")
        return given.pop(0) if len(given) > 1 else given[0]


class Site:
    """A web server on loopback, reached as `wiki.test` and, where the test says so, under other names."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[web.Request] = []

    def url(self, path: str, host: str = "wiki.test") -> str:
        return f"http://{host}:{self.port}{path}"


def fetcher(site: Site | None = None, names: Names | None = None, **changes: Any) -> Fetcher:
    """Loopback is open to it as `wiki.test` with the site's port only."""
    names = names or Names()
    names.answers.setdefault("wiki.test", [["127.0.0.1"]])
    if site is not None:
        changes.setdefault("fetch_private_hosts", f"wiki.test:{site.port}")
    return Fetcher(msgspec.structs.replace(SETTINGS, **changes), names)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    app = web.Application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)

    async def handle(request: web.Request) -> web.StreamResponse:
        site.seen.append(request)
        path, query = request.path, request.query
        if path == "/redirect":
            return web.Response(status=int(query.get("status", "302")), headers={"Location": query["to"]})
        if path == "/bomb":
            body = gzip.compress(bytes(50_000_000), 9)
            return web.Response(body=body, headers={"Content-Encoding": "gzip"}, content_type="text/plain")
        if path == "/packed":
            return web.Response(
                body=gzip.compress(b"unpacked"), headers={"Content-Encoding": "gzip"}, content_type="text/plain"
            )
        if path == "/other-packing":
            return web.Response(body=zlib.compress(b"x"), headers={"Content-Encoding": "deflate"})
        if path in ("/endless", "/slow"):
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x" if path == "/slow" else bytes(65_536))
                await asyncio.sleep(0.02 if path == "/slow" else 0)
        if path == "/circle":
            return web.Response(status=302, headers={"Location": "/circle"})
        if path == "/cookie":
            return web.Response(status=302, headers={"Location": "/", "Set-Cookie": "a=b; Path=/"})
        if path == "/error":
            return web.Response(status=503, text="no")
        if path == "/image":
            return web.Response(body=b"\x89PNG\r\n\x1a\n", content_type="image/png")
        if path == "/pdf":
            return web.Response(body=files.pdf(), content_type="application/pdf")
        if path == "/html":
            return web.Response(body=files.HTML, content_type="text/html")
        return web.Response(text="Hello.")

    app.router.add_get("/{path:.*}", handle)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site = Site(runner.addresses[0][1])
    yield site
    await runner.cleanup()


# -- addresses -------------------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1", "127.8.9.10", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "198.18.0.1", "192.88.99.1", "192.0.0.9",
    "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "3fff::1", "5f00::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "100::1", "fe80::1%lo",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_no_private_address_passes_in_any_wrapping(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]
)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "017700000001", "127.0.1"]
)
async def test_every_spelling_of_loopback_is_refused(host: str, site: Site) -> None:
    assert literal(host) is not None
    with pytest.raises(FetchRefusedError, match=r"not on the public network|no URL"):
        await fetcher(site).fetch(f"http://{host}:8080/")
    with pytest.raises((FetchRefusedError, FetchFailedError)):
        await fetcher(site).fetch(f"http://{host}:{site.port}/")
    assert site.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/", "http://0/", "http://127.0.0.1./", "http://１２７.0.0.1/", "http://①②⑦.0.0.1/",
        "http://127。0。0。1/", "http://[fe80::1%25lo]/", "http://169.254.169.254/latest/meta-data/",
        "http://%31%32%37.0.0.1/",
    ],
)  # fmt: skip
async def test_odd_literals_are_refused(url: str) -> None:
    with pytest.raises((FetchRefusedError, FetchFailedError)):
        await fetcher().fetch(url)


FORMS = [
    "http://127.1/", "http://127.0.1/", "http://0x7f.0x0.0x0.0x1/", "http://0X7F000001/", "http://0177.0.0.01/",
    "http://00000177.0.0.1/", "http://2852039166/", "http://0xa9fea9fe/", "http://169.254.43518/",
    "http://0251.0376.0251.0376/", "http://[::]/", "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/",
    "http://[0:0:0:0:0:ffff:7f00:0001]/", "http://[::ffff:169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::7f00:1]/", "http://[2002:c0a8:0101::1]/", "http://[2001:0:7f00:1::1]/", "http://[fd00::1]/",
    "http://[fec0::1]/", "http://[ff02::1]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/",
    "http://255.255.255.255/", "http://100.100.100.200/", "http://192.0.0.192/", "http://198.18.0.1/",
    "http://203.0.113.1/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://a.localhost/",
    "http://metadata.google.internal/", "http://metadata/", "http://instance-data/", "http://127.0.0.1.nip.io/",
    "http://7f000001.nip.io/", "http://localtest.me/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://ｌｏｃａｌｈｏｓｔ/",
    "http://①②⑦.⓪.⓪.①/", "http://127｡0｡0｡1/", "http://169。254。169。254/", "http://%6cocalhost/",
    "http://127.0.0.1%00.public.test/", "http://public.test@127.0.0.1/", "http://public.test%40127.0.0.1/",
    "http://127.0.0.1\\@public.test/", "http://public.test\\@127.0.0.1/", "http:\\\\127.0.0.1\\",
    "http://127.0.0.1#@public.test/", "http://127.0.0.1?@public.test/", "http:///127.0.0.1/", "http:127.0.0.1/",
    "http://127.0.0.1:80\\@public.test:80/", "http://127.0\t.0.1/", "http://127.0.0\n.1/", "ht\ntp://127.0.0.1/",
    "\thttp://127.0.0.1/", "http://127.0.0.1\r\nHost: public.test/", "http://public.test\r\n@127.0.0.1/",
    "http://loc\u00adalhost/", "http://local\u200bhost/", "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:6379/INFO", "ldap://127.0.0.1/", "data:text/html,hi", "jar:http://127.0.0.1!/", "url:http://a/",
    "http://public.test:25/", "http://public.test:0/", "http://public.test:65536/", "http://public.test:6379/",
]  # fmt: skip


@pytest.mark.parametrize("url", FORMS)
async def test_no_form_of_a_private_address_is_connected_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given every spelling that is known to pass guards, with a name server that tells the truth about the names among
    them, when it is fetched, then nothing is connected to, and it is a refusal or a failure in a sentence. The one
    public name among them may be asked for, at its own address."""
    reached: list[str] = []

    async def connect(sock: socket.socket, address: Any) -> None:
        reached.append(address[0])
        raise OSError("unreachable here")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connect)

    async def names(host: str, port: int) -> list[str]:
        if host == "public.test":
            return [PUBLIC]
        return ["169.254.169.254"] if host.startswith(("metadata", "instance")) else ["127.0.0.1", "::1"]

    with pytest.raises((FetchRefusedError, FetchFailedError)) as refused:
        await Fetcher(SETTINGS, names).fetch(url)
    assert set(reached) <= {PUBLIC}
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("url", FORMS)
async def test_no_form_of_a_private_address_is_redirected_to(site: Site, url: str) -> None:
    async def names(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    opened = Fetcher(msgspec.structs.replace(SETTINGS, fetch_private_hosts=f"wiki.test:{site.port}"), names)
    with suppress(FetchRefusedError, FetchFailedError):
        # A form that is a path of the same site is followed there, and nowhere else.
        assert (await opened.fetch(site.url("/redirect?to=" + quote(url, safe="")))).url.startswith(site.url(""))
    assert {request.headers["Host"] for request in site.seen} == {f"wiki.test:{site.port}"}


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.test/", "gopher://a.test/", "//a.test/", "a.test", "", "http://", "http:///x",
        "http://user@a.test/", "http://user:pass@a.test/", "http://:@a.test/", "http://a.test:22/",
        "http://a.test:6379/", "http://a.test:99999/", "http://[::1", "javascript:alert(1)",
        "http://a.test/" + "x" * 5_000,
    ],
)  # fmt: skip
async def test_what_is_no_plain_web_address_is_refused_unasked(url: str) -> None:
    names = Names(a_test=[["127.0.0.1"]])
    with pytest.raises(FetchRefusedError):
        await fetcher(names=names).fetch(url)
    assert names.asked == []


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_with_a_private_address_is_refused(address: str) -> None:
    with pytest.raises(FetchRefusedError) as refused:
        await fetcher(names=Names(evil_test=[[address]])).fetch("http://evil.test/")
    assert address not in str(refused.value)


async def test_one_private_address_among_public_ones_is_enough(site: Site) -> None:
    for answer in ([PUBLIC, "127.0.0.1"], ["::1", PUBLIC]):
        with pytest.raises(FetchRefusedError):
            await fetcher(site, Names(evil_test=[answer])).fetch("http://evil.test:8080/")
    assert site.seen == []


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Given a name server that answers with a public address first and with loopback afterwards, when a URL is
    fetched, then it is asked once, and the connection goes to the first address."""
    names = Names(evil_test=[[PUBLIC], ["127.0.0.1"]])
    loop = asyncio.get_running_loop()
    reached: list[Any] = []

    async def connect(sock: socket.socket, address: Any) -> None:
        reached.append(address)
        raise OSError("unreachable here")

    monkeypatch.setattr(loop, "sock_connect", connect)
    with pytest.raises(FetchFailedError) as failed:
        await fetcher(site, names).fetch("http://evil.test:8080/")
    assert [address[0] for address in reached] == [PUBLIC]
    assert names.asked == ["evil.test"]
    assert PUBLIC not in str(failed.value)
    assert site.seen == []


async def test_an_unknown_name_is_said_so() -> None:
    with pytest.raises(FetchFailedError, match="not known"):
        await fetcher().fetch("http://nowhere.test/")


def test_private_hosts_are_read_with_and_without_port() -> None:
    assert private_hosts(" Wiki.Intra, db:81 ,[::1]:82,::1,") == {
        ("wiki.intra", None), ("db", 81), ("::1", 82), ("::1", None)
    }  # fmt: skip


async def test_a_private_host_is_open_by_its_name_and_port_only(site: Site) -> None:
    names = Names(other_test=[["127.0.0.1"]])
    opened = fetcher(site, names)
    assert (await opened.fetch(site.url("/"))).content == b"Hello."
    with pytest.raises(FetchRefusedError):
        await opened.fetch(site.url("/", host="other.test"))
    with pytest.raises(FetchRefusedError):
        await opened.fetch("http://wiki.test:8080/")
    assert len(site.seen) == 1


async def test_a_literal_may_be_opened_by_the_operator(site: Site) -> None:
    opened = fetcher(site, fetch_private_hosts=f"127.0.0.1:{site.port}")
    for host in ("127.0.0.1", "2130706433"):
        assert (await opened.fetch(site.url("/", host=host))).status == 200
    assert site.seen[-1].headers["Host"] == f"127.0.0.1:{site.port}"


# -- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:8080/", "http://evil.test/", "http://169.254.169.254/", "//evil.test/", "file:///etc/passwd",
        "http://user:pass@wiki.test/", "http://2130706433/", "http://[::1]/",
    ],
)  # fmt: skip
async def test_a_redirect_is_checked_like_the_first_address(site: Site, to: str) -> None:
    opened = fetcher(site, Names(evil_test=[["127.0.0.1"]]))
    with pytest.raises(FetchRefusedError):
        await opened.fetch(site.url("/redirect?to=" + to))
    assert len(site.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_good_redirects_are_followed_without_cookies(site: Site, status: int) -> None:
    found = await fetcher(site).fetch(site.url(f"/redirect?status={status}&to=/cookie"))
    assert found == Fetched(site.url("/"), 200, "text/plain", b"Hello.")
    last = site.seen[-1]
    assert "Cookie" not in last.headers
    assert "Referer" not in last.headers
    assert "Authorization" not in last.headers
    assert last.headers["User-Agent"].startswith("Errand/")


async def test_a_circle_of_redirects_ends(site: Site) -> None:
    with pytest.raises(FetchFailedError, match="more than 5 times"):
        await fetcher(site).fetch(site.url("/circle"))
    assert len(site.seen) == 6


async def test_a_redirect_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(good_test=[[PUBLIC]])
    opened = fetcher(names=names)

    async def get(url: Any, addresses: list[str]) -> Any:
        return type(url)("http://good.test/")

    monkeypatch.setattr(opened, "_get", get)
    with pytest.raises(FetchRefusedError, match="from https to http"):
        await opened.fetch("https://good.test/")


# -- bounds ----------------------------------------------------------------------------------------------------------


READS = """
import asyncio, sys
from shared.settings import Settings
from worker.fetch import Fetcher, FetchFailedError
for url in sys.argv[1:]:
    try:
        print(asyncio.run(Fetcher(Settings(fetch_private_hosts="localhost,127.0.0.1")).fetch(url)).content.decode())
    except FetchFailedError as error:
        print(error)
"""


@needs_openssl
async def test_a_page_with_https_is_of_whom_its_name_says(tmp_path: Path) -> None:
    """Given a certificate for `localhost`, then the page is read under that name, and not under another at the same
    address, nor where the authority is not trusted."""
    identity, receiver = Certified(tmp_path / "tls", "localhost"), Receiver()
    await receiver.start(identity.context)
    try:
        urls = [f"https://{host}:{receiver.port}/" for host in ("localhost", "127.0.0.1")]
        answers = []
        for trusted in ({"SSL_CERT_FILE": str(identity.authority)}, {}):
            reader = await asyncio.create_subprocess_exec(
                sys.executable, "-c", READS, *urls, stdout=subprocess.PIPE, env={**os.environ, **trusted}, cwd=ROOT
            )
            answers.append((await reader.communicate())[0].decode().splitlines())
        refused = [f"The host {host} did not answer as a web server does." for host in ("localhost", "127.0.0.1")]
        assert answers == [["thanks", refused[1]], refused]
        assert identity.asked == ["localhost", None] * 2
        assert len(receiver.got) == 1
    finally:
        await receiver.stop()


async def test_packed_content_is_unpacked_and_bombs_are_not(site: Site) -> None:
    assert (await fetcher(site).fetch(site.url("/packed"))).content == b"unpacked"
    with pytest.raises(FetchFailedError, match="larger than 100000 bytes"):
        await fetcher(site).fetch(site.url("/bomb"))
    with pytest.raises(FetchFailedError, match="deflate"):
        await fetcher(site).fetch(site.url("/other-packing"))


async def test_an_endless_body_ends_at_the_bound(site: Site) -> None:
    with pytest.raises(FetchFailedError, match="larger than 100000 bytes"):
        await fetcher(site).fetch(site.url("/endless"))


async def test_a_slow_body_ends_at_the_bound(site: Site) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(FetchFailedError, match=r"longer than 0\.3 s"):
        await fetcher(site, fetch_seconds=0.3).fetch(site.url("/slow"))
    assert asyncio.get_running_loop().time() - began < 2


async def test_a_server_that_speaks_no_http_is_a_sentence() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    opened = fetcher(fetch_private_hosts="wiki.test")
    with pytest.raises(FetchFailedError, match="did not answer"):
        await opened.fetch(f"http://wiki.test:{port}/")
    server.close()


async def test_the_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await fetcher(site).fetch(site.url("/"))).status == 200


# -- the tool --------------------------------------------------------------------------------------------------------


async def test_an_agent_gets_the_text_of_a_page(stack: Stack, site: Site) -> None:
    library = stack.engines[0]._deps.library
    tool = fetch_url(WebPages(fetcher(site), library), SETTINGS)
    context = ToolContext(tenant="ten_x", library=library, settings=SETTINGS)

    async def told(path: str) -> tuple[bool, str]:
        result = await call_tool(tool, {"url": site.url(path)}, context)
        return result.is_error, result.text

    failed, text = await told("/redirect?to=/html")
    assert not failed
    assert text.startswith(f"Page & title\n{site.url('/html')}\n\n")
    assert "First bold text." in text
    assert "alert" not in text
    failed, text = await told("/pdf")
    assert (failed, "42 francs" in text) == (False, True)
    assert await told("/error") == (True, f"{site.url('/error')} answered with status 503.")
    failed, text = await told("/image")
    assert (failed, "only HTML, PDF" in text) == (True, True)
    failed, text = await told("/redirect?to=http://127.0.0.1/")
    assert (failed, "not on the public network" in text) == (True, True)
