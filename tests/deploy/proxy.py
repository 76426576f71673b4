"""Run nginx and Caddy with the configurations in ``deploy/``, on the ports and files of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.ports import reserved_port
from tests.support.process import environment
from tests.support.source import ROOT
from tests.support.waiting import wait_for

NAME = "telemetry.example.org"
"""The host name in the examples."""


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """Return the text with these replacements. Each of them must occur."""
    for old, new in replacements.items():
        assert old in text, f"{old} does not occur"
        text = text.replace(old, new)
    return text


def nginx(directory: Path, port: int, upstream: int, certificate: tuple[Path, Path]) -> list[str]:
    """Write a configuration that includes the example.

    :return: the command that starts nginx.
    """
    chain, key = certificate
    example = replaced(
        (ROOT / "deploy/nginx.conf").read_text(),
        {
            "listen 443 ": f"listen 127.0.0.1:{port} ",
            "    listen [::]:443 ssl http2;\n": "",
            "server 127.0.0.1:3000;": f"server 127.0.0.1:{upstream};",
            f"/etc/letsencrypt/live/{NAME}/fullchain.pem": str(chain),
            f"/etc/letsencrypt/live/{NAME}/privkey.pem": str(key),
            "/var/log/nginx": str(directory),
        },
    )
    files = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""  # the default user cannot enter the directory
    (directory / "nginx.conf").write_text(
        f"{user}daemon off;\npid {directory}/pid;\nevents {{}}\nhttp {{\n{files}{example}}}\n"
    )
    return ["nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]


def caddy(directory: Path, port: int, upstream: int, certificate: tuple[Path, Path]) -> list[str]:
    """Write the example with these ports.

    :return: the command that starts Caddy.
    """
    chain, key = certificate
    example = replaced(
        (ROOT / "deploy/Caddyfile").read_text(),
        {
            "\tauto_https disable_redirects": "\tauto_https off\n\tadmin off",
            f"{NAME} {{": f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {chain} {key}",
            "127.0.0.1:3000": f"127.0.0.1:{upstream}",
        },
    )
    (directory / "Caddyfile").write_text(example)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{directory}/Caddyfile"]


KINDS: Mapping[str, Callable[[Path, int, int, tuple[Path, Path]], list[str]]] = {"nginx": nginx, "caddy": caddy}


def program(name: str) -> str | None:
    """Return the path of a program, or None if it is not installed."""
    return shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@dataclass
class Proxy:
    """A proxy in front of a server on this machine.

    :param kind: of :data:`KINDS`.
    :param upstream: the server's port.
    """

    kind: str
    directory: Path
    upstream: int

    def __enter__(self) -> Proxy:
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.directory / "ca.pem")
        self._resources = ExitStack()
        self._port = self._resources.enter_context(reserved_port())
        name, *arguments = KINDS[self.kind](self.directory, self._port, self.upstream, self._certificate())
        path = program(name)
        assert path is not None
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [path, *arguments],
                cwd=self.directory,
                env={**environment(), "HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            wait_for(self._listens, lambda: self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._resources.close()

    @property
    def log(self) -> str:
        """Everything that the proxy has written to its log files and to its output."""
        return "".join(file.read_text() for file in (*self.directory.glob("*.log"), self._output))

    def curl(self, path: str, *arguments: str, source: str = "127.0.0.1", body: bytes = b"") -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the response.

        :param source: the address from which to send.
        :param body: the standard input of curl, which ``@-`` and ``-T -`` read.
        """
        options = ["--resolve", f"{NAME}:{self._port}:127.0.0.1", "--cacert", str(self.directory / "ca.pem")]
        command = ["curl", "-sS", *options, "--interface", source, "-w", "\n%{http_code}", *arguments]
        done = subprocess.run(
            [*command, f"https://{NAME}:{self._port}{path}"], input=body, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        content, _, status = done.stdout.rpartition(b"\n")
        return int(status), content

    @property
    def _output(self) -> Path:
        return self.directory / "output"

    def _certificate(self) -> tuple[Path, Path]:
        leaf = self._authority.issue_cert(NAME)
        chain, key = self.directory / "chain.pem", self.directory / "key.pem"
        for index, pem in enumerate(leaf.cert_chain_pems):
            pem.write_to_path(chain, append=index > 0)
        leaf.private_key_pem.write_to_path(key)
        return chain, key

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0
