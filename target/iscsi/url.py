"""iSCSI URLs, in the form that libiscsi and QEMU use: iscsi://[user[%secret]@]host[:port]/target-iqn/lun."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from target.errors import OperatorError
from target.iscsi.address import format_address, parse_address
from target.iscsi.chap import ChapCredentials
from target.scsi.lun import LUN_MAX

_SCHEME = "iscsi://"


@dataclass(frozen=True, slots=True)
class IscsiUrl:
    """A logical unit, or a portal for discovery when `target_name` is empty."""

    host: str
    port: int
    target_name: str
    lun: int
    user: str | None = None
    secret: str | None = None

    @property
    def portal(self) -> str:
        return format_address(self.host, self.port)

    @property
    def chap(self) -> ChapCredentials | None:
        if self.user is None or self.secret is None:
            return None
        return ChapCredentials(self.user, self.secret)

    def __str__(self) -> str:
        """Without the secret: fit for a log."""
        user = f"{self.user}@" if self.user else ""
        return f"{_SCHEME}{user}{self.portal}/{self.target_name}/{self.lun}"

    def __repr__(self) -> str:
        return f"IscsiUrl({str(self)!r})"


def parse_url(text: str) -> IscsiUrl:
    """Read a URL. A user without secret is legal: the caller gets the secret from elsewhere."""
    shown = text.rpartition("@")[2]  # what stands before may hold a secret
    if not text.startswith(_SCHEME):
        raise OperatorError(f"{shown!r} is not an iSCSI URL: it must start with {_SCHEME}")
    rest, at, tail = text[len(_SCHEME) :].rpartition("@")
    credentials = rest if at else ""
    authority, _, path = tail.partition("/")
    host, port = parse_address(authority)
    name, slash, lun_text = path.rpartition("/") if path else ("", "/", "0")
    if not slash or (path and not name) or not lun_text.isdecimal() or int(lun_text) > LUN_MAX:
        raise OperatorError(f"{shown!r} is not an iSCSI URL: expected {_SCHEME}host:port/target/lun")
    user, percent, secret = credentials.partition("%")
    return IscsiUrl(
        host=host,
        port=port,
        target_name=unquote(name),
        lun=int(lun_text),
        user=user or None,
        secret=secret if percent else None,
    )
