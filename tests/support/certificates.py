"""Certificates for tests, issued by a temporary authority."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate, its key, and the authority that issued it."""

    key: Path
    certificate: Path
    authority: Path

    @classmethod
    def make(cls, directory: Path, *names: str) -> Certificate:
        """Issue a certificate for host names and addresses."""
        directory.mkdir(parents=True, exist_ok=True)
        files = cls(directory / "key.pem", directory / "cert.pem", directory / "ca.pem")
        authority = trustme.CA()
        issued = authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(files.key)
        issued.cert_chain_pems[0].write_to_path(files.certificate)
        authority.cert_pem.write_to_path(files.authority)
        return files

    @property
    def endpoint(self) -> str:
        """The endpoint string of a server with this certificate on a free port."""
        return f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"
