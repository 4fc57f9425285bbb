"""The client where TLS fails: with the reason that TLS has, and a hint that helps."""

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from kvnode.cli.client import Client, Unreachable


async def _answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


def _client_of(server: asyncio.Server) -> Client:
    return Client(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", retries=0)


async def test_https_to_a_node_that_speaks_http_is_called_that() -> None:
    async with await asyncio.start_server(_answer_plainly, "127.0.0.1", 0) as server, _client_of(server) as client:
        with pytest.raises(Unreachable, match="TLS failed: ") as caught:
            await client.put("a", 1)
    assert "not permitted" not in caught.value.message
    assert "http://" in str(caught.value.hint)


async def test_a_certificate_that_nobody_vouches_for_is_called_that(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    await asyncio.to_thread(
        subprocess.run,
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=kv "
        "-addext subjectAltName=IP:127.0.0.1 -out certificate -keyout key".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    served = await asyncio.start_server(_answer_plainly, "127.0.0.1", 0, ssl=context)
    async with served as server, _client_of(server) as client:
        with pytest.raises(Unreachable, match=r"TLS failed: self.signed certificate") as caught:
            await client.put("a", 1)
    assert "SSL_CERT_FILE" in str(caught.value.hint)
