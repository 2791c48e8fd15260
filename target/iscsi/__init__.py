"""iSCSI, both sides of it, on one codec (RFC 7143). In reading order:

The codec: `pdu` (framing, digests), `requests` and `responses` (every PDU, byte by byte), `text` (key=value),
`negotiation` (the table of keys), `chap`.

The target: `listener` accepts for `portal` (sockets), which reads into `connection`, which leads through
`login` to a `session`; that makes a `task` of each SCSI command and hands it to the device of its `node`.
Beside the session: `write_collection` (data in further PDUs), `held_commands` (those ahead of their turn),
`answers` (those that need more than one plain PDU), `task_management`, `housekeeping`, and what all sessions
share: the `registry` and the memory `budget`. `peer_log` is what the log is told about them.

The initiator: `initiator_login`, `initiator`, and two drivers, `client` (blocking) and `async_client` (on
the loop). `address` and `url` read what people write.

Only `listener`, `portal`, `client` and `async_client` do I/O.
"""
