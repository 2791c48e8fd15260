"""`replctl lun ...`: a look at any iSCSI logical unit, through the project's own initiator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from hostagent.cli.output import Json, bytes_text, say, show_json
from target.control.site_file import SecretFile
from target.errors import OperatorError, PeerError
from target.iscsi.client import TRANSFER_BYTES_MAX, Client, ScsiError, SenseKey

app = typer.Typer(help="Read, write and inspect an iSCSI logical unit.", no_args_is_help=True)

Url = Annotated[str, typer.Argument(metavar="URL", help="iscsi://[user@]host:port/target-name/lun")]
User = Annotated[str | None, typer.Option(metavar="NAME", help="CHAP user; may also stand in the URL.")]
Secret = Annotated[
    Path | None,
    typer.Option("--secret-file", metavar="FILE", help="CHAP secret; readable by its owner alone."),
]
Lba = Annotated[int, typer.Option(min=0, help="First logical block.")]

_SCHEME = "iscsi://"


@app.command()
def read(
    url: Url,
    blocks: Annotated[int, typer.Option(min=1, help="How many logical blocks.")],
    lba: Lba = 0,
    output: Annotated[Path | None, typer.Option(help="Where to; standard output when left out.")] = None,
    user: User = None,
    secret_file: Secret = None,
    json: Json = False,
) -> None:
    """Read blocks into a file or to standard output. --json, with --output, says what was read."""
    if json and output is None:
        raise OperatorError("--json needs --output FILE: standard output would carry the data")
    if output is None and sys.stdout.isatty():
        raise OperatorError("standard output is a terminal: give --output FILE, or a pipe")
    with _connect(url, user, secret_file) as client:
        _check_range(client, lba, blocks)
        count = 0
        target = sys.stdout.buffer if output is None else _open(output, "wb")
        try:
            step = TRANSFER_BYTES_MAX // client.block_size_bytes
            ranges = ((at, min(step, lba + blocks - at)) for at in range(lba, lba + blocks, step))
            for data in client.read_many(ranges):
                target.write(data)
                count += len(data)
            target.flush()
        finally:
            if output is not None:
                target.close()
    if json:
        show_json({"lba": lba, "blocks": blocks, "bytes": count, "output": str(output)})


@app.command()
def write(
    url: Url,
    input_file: Annotated[Path, typer.Option("--input", metavar="FILE", help='What; "-": standard input.')],
    lba: Lba = 0,
    fua: Annotated[bool, typer.Option("--fua", help="Each write durable before it is answered.")] = False,
    flush: Annotated[bool, typer.Option("--flush", help="SYNCHRONIZE CACHE at the end.")] = False,
    user: User = None,
    secret_file: Secret = None,
    json: Json = False,
) -> None:
    """Write a file, whole blocks, from LBA on."""
    with _connect(url, user, secret_file) as client:
        source = sys.stdin.buffer if str(input_file) == "-" else _open(input_file, "rb")
        with source:
            end = lba
            for data in _whole_blocks(source, client.block_size_bytes):
                blocks = len(data) // client.block_size_bytes
                _check_range(client, end, blocks)
                _write_blocks(client, end, data, fua=fua)
                end += blocks
        if flush:
            client.flush()
        count = (end - lba) * client.block_size_bytes
    if json:
        show_json({"lba": lba, "blocks": end - lba, "bytes": count, "fua": fua, "flushed": flush})
    else:
        say(f"{bytes_text(count)} written from block {lba} to {end - 1}{', flushed' if flush else ''}")


@app.command()
def inquiry(
    url: Url,
    page: Annotated[str | None, typer.Option(help="A vital product data page, as 0x83.")] = None,
    user: User = None,
    secret_file: Secret = None,
    json: Json = False,
) -> None:
    """Who the logical unit says it is (SPC-4 6.6)."""
    try:
        code = None if page is None else int(page, 0)
    except ValueError:
        raise OperatorError(f"--page {page}: not a number; write it as 0x83") from None
    if code is not None and not 0 <= code <= 0xFF:
        raise OperatorError(f"--page {page}: not between 0x00 and 0xff")
    with _connect(url, user, secret_file) as client:
        data = client.inquiry(code)
    if code is not None:
        show_json({"page": code, "data": data.hex()}) if json else say(data.hex(" ", 4))
        return
    # SPC-4 6.6.2, standard INQUIRY data.
    facts = {
        "vendor": data[8:16].decode("ascii", "replace").strip(),
        "product": data[16:32].decode("ascii", "replace").strip(),
        "revision": data[32:36].decode("ascii", "replace").strip(),
    }
    if json:
        show_json({"peripheral_device_type": data[0] & 0x1F, **facts, "data": data.hex()})
    else:
        say(" ".join(map(str, facts.values())))


@app.command()
def capacity(url: Url, user: User = None, secret_file: Secret = None, json: Json = False) -> None:
    """How large the logical unit is (READ CAPACITY (16))."""
    with _connect(url, user, secret_file) as client:
        blocks, size = client.block_count, client.block_size_bytes
    if json:
        show_json({"blocks": blocks, "block_size_bytes": size, "bytes": blocks * size})
    else:
        say(f"{blocks} blocks of {size} bytes: {bytes_text(blocks * size)}")


def _connect(url: str, user: str | None, secret_file: Path | None) -> Client:
    """Log in; credentials that were given apart are put into the URL, where the initiator looks for them."""
    if secret_file is not None:
        try:
            secret = SecretFile.read(secret_file).value
        except ValueError as error:
            raise OperatorError(f"--secret-file: {error}") from None
        if not url.startswith(_SCHEME):
            raise OperatorError(f"{url!r} is not an iSCSI URL: it must start with {_SCHEME}")
        in_url, _, rest = url.removeprefix(_SCHEME).rpartition("@")
        name = user or in_url
        if not name or "%" in name:
            raise OperatorError("--secret-file needs the CHAP user it belongs to: --user NAME")
        url = f"{_SCHEME}{name}%{secret}@{rest}"
    elif user is not None:
        raise OperatorError(f"--user {user}: its secret is missing; give --secret-file FILE")
    return Client.connect(url)


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None


def _check_range(client: Client, lba: int, blocks: int) -> None:
    if lba + blocks > client.block_count:
        raise OperatorError(
            f"blocks {lba} to {lba + blocks - 1} are not all there: the last is {client.block_count - 1}"
        )


def _write_blocks(client: Client, lba: int, data: bytes, *, fua: bool) -> None:
    try:
        client.write(lba, data, fua=fua)
    except ScsiError as error:
        if error.sense is None or error.sense.key is not SenseKey.DATA_PROTECT:
            raise
        raise PeerError(
            f"{error}; a secondary, and a primary that was superseded, refuse writes: see pair status"
        ) from None


def _whole_blocks(source: BinaryIO, block_size_bytes: int) -> Iterator[bytes]:
    """Pieces of whole blocks; a pipe may give less at a time than is asked for."""
    while True:
        data = source.read(8 * TRANSFER_BYTES_MAX)
        if not data:
            return
        if len(data) % block_size_bytes:
            raise OperatorError(f"the input is no whole number of blocks of {block_size_bytes} bytes")
        yield data
