"""Base and verify records say what the volumes hold at exactly their place in the sequence."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from target.journal.record import RecordType
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Image, Node, apply

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite


_CHANGES = {RecordType.UPDATE, RecordType.ZERO, RecordType.GROW}


class BaseContent(Checker):
    def appending(self, site: SimSite, node: Node, image: Image) -> None:
        kinds = {record.type for record in node.records}
        if not kinds & {RecordType.BASE, RecordType.BASE_ZERO, RecordType.VERIFY}:
            return
        if kinds & _CHANGES:
            image = {volume: bytearray(content) for volume, content in image.items()}
        for number, record in enumerate(node.records):
            if record.type in _CHANGES:
                apply(image, record)
                continue
            if record.type not in (RecordType.BASE, RecordType.BASE_ZERO, RecordType.VERIFY):
                continue
            content = image[record.volume][record.offset : record.offset + record.length]
            if record.type == RecordType.BASE:
                right = content == record.data
            elif record.type == RecordType.BASE_ZERO:
                right = not content.strip(b"\0")
            else:
                right = hashlib.sha256(content).digest() == record.data
            if not right:
                self.fail(
                    f"record {node.first + number} of {site.name} ({RecordType(record.type).name}) is not "
                    f"what volume {record.volume} holds at {record.offset}+{record.length}"
                )
