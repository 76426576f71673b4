"""Certificates, made for a test by an authority of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """Files with a certificate, its key, and the authority that signed it."""

    key: Path
    certificate: Path
    authority: Path

    @classmethod
    def make(cls, directory: Path, *names: str) -> Certificate:
        """For these host names and addresses."""
        directory.mkdir(parents=True, exist_ok=True)
        made = cls(directory / "key.pem", directory / "cert.pem", directory / "ca.pem")
        authority = trustme.CA()
        issued = authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(made.key)
        issued.cert_chain_pems[0].write_to_path(made.certificate)
        authority.cert_pem.write_to_path(made.authority)
        return made

    @property
    def endpoint(self) -> str:
        """Of a server on a free port."""
        return f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"
