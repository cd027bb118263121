"""A certificate for `localhost`, made for this run."""

from __future__ import annotations

import ssl
import subprocess
from typing import NamedTuple

import pytest


class TLS(NamedTuple):
    """The two ends of an encrypted connection."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificate: str


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """Return what a server on this machine and its clients need."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    certificate = str(folder / "cert.pem")
    return TLS(server, ssl.create_default_context(cafile=certificate), certificate)
