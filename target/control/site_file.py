"""Reading `site.toml`, the one file that both daemons of a site are started with.

`target.config` and `hostagent.config` each declare the tables they need as msgspec structs; this module turns
the file into them. Every failure is an `OperatorError` that names file, key and reason. Relative paths count
from the directory of the file, so that a site's directory can be moved as a whole.
"""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
import typing
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from target.errors import OperatorError

T = TypeVar("T")

_SIZE = re.compile(r"(\d+)\s*(|B|KiB|MiB|GiB|TiB)")
_SIZE_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_JOURNAL_BYTES_MIN = 48 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ISCSI_NAME = re.compile(
    r"(iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:\S+)?|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16,32})"
)
_WWPN = re.compile(r"[125cdef][0-9a-f]{15}")  # an NAA format that names a port (FC-FS-3)
_ISCSI_NAME_BYTES_MAX = 223  # RFC 7143 4.2.7.1
_MSGSPEC_ERROR = re.compile(r"(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_FIELD_ERROR = re.compile(r"Object (contains unknown|missing required) field `(?P<field>[^`]*)`")


class ByteSize(int):
    """A number of bytes, written as an integer or as "<n>KiB|MiB|GiB|TiB"."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(
                f'{value!r} is not a size: write an integer number of bytes or "<n>KiB|MiB|GiB|TiB"'
            )
        return cls(int(match[1]) * _SIZE_UNITS[match[2]])


class VolumeSize(ByteSize):
    """The size of a volume: whole blocks of 4096 bytes, whatever its logical block size."""

    @classmethod
    def parse(cls, value: object) -> Self:
        size = super().parse(value)
        if size == 0 or size % 4096:
            raise ValueError(f"{value!r} is not a positive multiple of 4096 bytes")
        return size


class JournalSize(ByteSize):
    """The size of a journal volume."""

    @classmethod
    def parse(cls, value: object) -> Self:
        size = super().parse(value)
        if size < _JOURNAL_BYTES_MIN or size % 4096:
            raise ValueError(
                f"{value!r} is not a multiple of 4096 bytes, at least {_JOURNAL_BYTES_MIN >> 20}MiB"
            )
        return size


class Name(str):
    """The name of a site, a group or a volume: it appears in paths, commands and iSCSI names."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Name:
        if isinstance(value, str) and _NAME.fullmatch(value):
            return cls(value)
        raise ValueError(
            f"{value!r} is not a name: 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first"
        )


class IscsiName(str):
    """An iSCSI name, RFC 7143 section 4.2.7: iqn., eui. or naa. format."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> IscsiName:
        if (
            isinstance(value, str)
            and len(value.encode()) <= _ISCSI_NAME_BYTES_MAX
            and _ISCSI_NAME.fullmatch(value)
        ):
            return cls(value)
        raise ValueError(f"{value!r} is not an iSCSI name (iqn.<year>-<month>.<domain>:<any>, eui. or naa.)")


class Wwpn(str):
    """The name of a Fibre Channel port, kept as LIO writes it: "naa." and 16 hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Wwpn:
        if isinstance(value, str):
            digits = value.lower().removeprefix("naa.").removeprefix("0x").replace(":", "")
            if _WWPN.fullmatch(digits):
                return cls(f"naa.{digits}")
        raise ValueError(f'{value!r} is not the WWPN of a port: write "20:00:00:25:b5:00:00:01"')


class Address(str):
    """A TCP address, "host:port"; an IPv6 host is written in brackets."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Address:
        if isinstance(value, str):
            host, colon, port = value.rpartition(":")
            bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            if (
                colon
                and bare
                and (":" not in bare or bare != host)
                and port.isdecimal()
                and int(port) <= 65535
            ):
                return cls(value)
        raise ValueError(f'{value!r} is not an address: write "host:port"')

    @property
    def host(self) -> str:
        return self.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])


KERNEL = "kernel"


class SanPortal(str):
    """Where a peer's journal is read: an address, or `KERNEL`: as a block device that the kernel attached."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> SanPortal:
        return cls(value if value == KERNEL else Address.parse(value))


class SecretFile:
    """A secret that was read from a file which nobody else may read. Never printed."""

    __slots__ = ("path", "value")

    def __init__(self, path: Path, value: str) -> None:
        self.path = path
        self.value = value

    def __repr__(self) -> str:
        return f"SecretFile({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretFile) and (self.path, self.value) == (other.path, other.value)

    def __hash__(self) -> int:
        return hash((self.path, self.value))

    @classmethod
    def read(cls, path: Path) -> SecretFile:
        """One secret a file; white space around it does not count."""
        try:
            check_private(path)
            value = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} does not hold text") from None
        if not value:
            raise ValueError(f"{path} is empty")
        return cls(path, value)


def check_private(path: Path) -> None:
    """Refuse a secret or private key open to all users with ValueError; OSError if it is not there."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        raise ValueError(f"{path} has mode {mode:04o}, open to all users: run `chmod 600 {path}`")


def read_site_file(path: Path, kind: type[T]) -> T:
    """The tables of `path` as `kind`, a msgspec struct."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: not valid TOML: {error}") from None
    base = path.absolute().parent

    def convert(wanted: type[object], value: object) -> object:
        if wanted is Path or wanted is SecretFile:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{value!r} is not a path")
            return base / value if wanted is Path else SecretFile.read(base / value)
        if wanted in (VolumeSize, JournalSize, Name, IscsiName, Wwpn, Address, SanPortal):
            return wanted.parse(value)
        raise NotImplementedError(wanted)

    try:
        return msgspec.convert(table, kind, dec_hook=convert)
    except msgspec.ValidationError as error:
        raise OperatorError(f"{path}: {_explain(str(error), kind)}") from None


def _explain(message: str, kind: type[object]) -> str:
    """ "key: reason" from msgspec's "reason - at `$.key`", with the near match for an unknown key."""
    match = _MSGSPEC_ERROR.fullmatch(message)
    assert match is not None
    reason, key = match["reason"], match["path"] or ""
    field = _FIELD_ERROR.fullmatch(reason)
    if field is not None:
        name = field["field"]
        reason = "unknown key" if "unknown" in reason else "this key is required"
        near = difflib.get_close_matches(name, _keys_at(kind, key)) if reason == "unknown key" else []
        if near:
            reason += f"; did you mean {near[0]}?"
        key = f"{key}.{name}" if key else name
    return f"{key}: {reason}" if key else reason


def _keys_at(kind: object, key: str) -> list[str]:
    """The keys that a table may hold."""
    for part in re.findall(r"[^.\[\]]+", key):
        if part.isdecimal():
            continue
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(_struct_in(kind))}
        kind = fields[part]
    return [field.encode_name for field in msgspec.structs.fields(_struct_in(kind))]


def _struct_in(kind: object) -> type[msgspec.Struct]:
    """The struct in `S`, `list[S]` or `S | None`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(_struct_in(part) for part in typing.get_args(kind) if part is not type(None))
