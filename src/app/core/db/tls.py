"""TLS with PostgreSQL: what the `ssl...` parameters of an address mean, as an `ssl.SSLContext`.

The modes are those of libpq (https://www.postgresql.org/docs/current/libpq-ssl.html). `require` encrypts and checks no
certificate unless a root certificate is given. `verify-full` without one trusts the certificates of the system.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SYSTEM: Final = "system"  # in place of a root certificate's file: those that the system trusts
VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_HOME: Final = "~/.postgresql"  # where libpq looks for files that no parameter names


class TLSFileError(Exception):
    """A file of certificates cannot be used. The text completes a sentence about the setting; it has no file's name."""


@dataclass(frozen=True, slots=True)
class TLS:
    """How a connection is encrypted, and which certificates it accepts.

    Attributes:
        mode: one of `MODES`.
        root: the file with the certificates to trust, or `SYSTEM`.
        certificate, key, key_password: of this client; an empty name is no certificate.
        crl, crl_folder: a file and a folder with revoked certificates.
        minimum, maximum: keys of `VERSIONS`.
        direct: whether the TLS handshake comes first, without asking the server for it.
    """

    mode: str = "prefer"
    root: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str = field(default="", repr=False)
    crl: str | None = None
    crl_folder: str | None = None
    minimum: str | None = None
    maximum: str | None = None
    direct: bool = False

    def argument(self) -> str | ssl.SSLContext:
        """asyncpg's `ssl`: the mode where no certificate is checked, otherwise a context. Raises: TLSFileError."""
        if self.mode in {"disable", "allow", "prefer"}:
            return self.mode
        root = self.root or _in_home("root.crt") or (SYSTEM if self.mode == "verify-full" else None)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.mode == "verify-full"
        if root is None:
            if self.mode != "require":
                raise TLSFileError("needs sslrootcert, the file of the certificate to trust, for its sslmode=verify-ca")
            context.verify_mode = ssl.CERT_NONE
        elif root == SYSTEM:
            context.load_default_certs()
        else:
            _load("sslrootcert", lambda: context.load_verify_locations(cafile=root))
        self._load_revoked(context)
        self._load_own(context)
        context.minimum_version = VERSIONS[self.minimum or "TLSv1.2"]
        if self.maximum:
            context.maximum_version = VERSIONS[self.maximum]
        context.set_alpn_protocols(["postgresql"])
        return context

    def _load_revoked(self, context: ssl.SSLContext) -> None:
        file = self.crl or _in_home("root.crl")
        if context.verify_mode is ssl.CERT_NONE or (file is None and self.crl_folder is None):
            return
        if self.crl_folder is not None and not Path(self.crl_folder).is_dir():
            raise TLSFileError("names no folder as its sslcrldir")
        _load("sslcrl", lambda: context.load_verify_locations(cafile=file, capath=self.crl_folder))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN

    def _load_own(self, context: ssl.SSLContext) -> None:
        certificate = _in_home("postgresql.crt") if self.certificate is None else self.certificate
        if not certificate:
            return
        key = self.key or _in_home("postgresql.key")
        password = self.key_password  # Without one, OpenSSL would ask for it at the terminal.
        _load("sslcert or sslkey", lambda: context.load_cert_chain(certificate, key, password=lambda: password))


def _in_home(name: str) -> str | None:
    try:
        file = Path(_HOME, name).expanduser()
    except RuntimeError:  # There is no home.
        return None
    return str(file) if file.is_file() else None


def _load(parameters: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise TLSFileError(
            f"names a file as its {parameters} that holds none ({error.reason or 'no certificate'})"
        ) from None
    except OSError as error:
        raise TLSFileError(f"names a file as its {parameters} that cannot be read: {error.strerror}") from None
