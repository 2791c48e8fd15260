"""Keys of the SSH link between host agents: who a peer is, is which key it holds.

A site's agent knows its peers by `authorized_keys` (OpenSSH's format, sshd(8), no options), whose comment is
the peer's site name, and by the host key that its configuration pins.
"""

from __future__ import annotations

import base64
import binascii
import logging
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from hostagent.ssh_library import paramiko
from target.control.site_file import check_private
from target.errors import OperatorError

SUBSYSTEM = "replication"

# Paramiko logs every stranger's bad handshake as an error with a traceback; what matters is logged here.
PARAMIKO_LOG = "hostagent.paramiko"
logging.getLogger(PARAMIKO_LOG).setLevel(logging.CRITICAL)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuthorizedKey:
    """One line of authorized_keys."""

    algorithm: str
    blob: bytes
    site_name: str


def load_private_key(path: Path) -> paramiko.PKey:
    """A host key or identity that nobody else may read, without a passphrase."""
    try:
        check_private(path)
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise OperatorError(f"private key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, paramiko.SSHException) as error:
        raise OperatorError(f"private key {path}: {error}") from None


def generate_key(path: Path, comment: str) -> str:
    """Make an Ed25519 key pair at `path` and `path`.pub, OpenSSH's format; returns the public line."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    line = f"{public.decode()} {comment}"
    path.touch(mode=0o600)
    path.write_bytes(private)
    path.with_name(path.name + ".pub").write_text(line + "\n", encoding="utf-8")
    return line


def read_authorized_keys(path: Path) -> list[AuthorizedKey]:
    """The keys that may log in; empty, with a line in the log, when the file cannot be trusted or read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o022:
            log.error("%s has mode %04o, others could add keys: nobody is let in", path, mode)
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        log.error("%s cannot be read, nobody is let in: %s", path, error)
        return []
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = parse_public_key(line)
        if key is None or not key.site_name:
            log.warning('%s line %d is not "algorithm key site-name": ignored', path, number)
        else:
            keys.append(key)
    return keys


def parse_public_key(line: str) -> AuthorizedKey | None:
    """`algorithm base64 [comment]`; a line with options in front is None, for they would not be honoured."""
    algorithm, encoded, comment = [*line.split(None, 2), "", "", ""][:3]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return None
    # RFC 4253 6.6: the blob begins with the length and the name of its algorithm.
    if not algorithm or not blob.startswith(len(algorithm).to_bytes(4, "big") + algorithm.encode()):
        return None
    return AuthorizedKey(algorithm, blob, comment.strip())
