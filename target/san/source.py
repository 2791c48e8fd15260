"""A peer's journal LUN over iSCSI: our own initiator on the event loop, READ (16) and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from target.errors import PeerError
from target.iscsi.address import parse_address
from target.iscsi.async_client import AsyncClient
from target.iscsi.initiator import Response
from target.iscsi.initiator_login import LoginSettings
from target.loop import Loop
from target.scsi import cdb
from target.scsi.command import Status
from target.scsi.sense import decode_sense
from target.volume import SECTOR_BYTES, Buffer

_UNIT_ATTENTIONS_MAX = 4
PING_SECONDS = 2.0


class IscsiSource:
    """`san.fetch.JournalSource` over iSCSI. The LUN's blocks have 512 bytes."""

    def __init__(self, loop: Loop, portal: str, target_name: str, lun: int, initiator_name: str) -> None:
        host, port = parse_address(portal)
        settings = LoginSettings(initiator_name, target_name)
        self._client = AsyncClient(
            loop, host, port, lun, settings, timeout_seconds=5.0, ping_seconds=PING_SECONDS
        )
        self._closed = False

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        self._client.connect(on_up, lambda why: None if self._closed else on_down(str(why)))

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        self._submit(offset, length, done, _UNIT_ATTENTIONS_MAX)

    def _submit(
        self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None], tries: int
    ) -> None:
        def answered(response: Response | None) -> None:
            if self._closed or response is None:
                return  # `on_down` says why
            if response.status == Status.GOOD and len(response.data_in) == length:
                done(response.data_in, None)
                return
            sense = decode_sense(response.sense) if response.sense else None
            retry = response.status == Status.BUSY or (sense is not None and sense.key == _UNIT_ATTENTION)
            if retry and tries:
                self._submit(offset, length, done, tries - 1)
            else:
                reason = (
                    str(sense) if sense else f"status {response.status:#04x}, {len(response.data_in)} bytes"
                )
                done(None, PeerError(f"READ of {length} bytes at {offset} of {self._client}: {reason}"))

        command = cdb.block_command(cdb.Opcode.READ_16, offset // SECTOR_BYTES, length // SECTOR_BYTES)
        self._client.submit(command, b"", length, answered)

    def close(self) -> None:
        self._closed = True
        self._client.close()


_UNIT_ATTENTION = 0x06
