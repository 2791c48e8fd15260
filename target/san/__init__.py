"""Transfer over the SAN link: SCSI READs of a peer's journal LUN, and nothing else.

`intake` judges the bytes (pure), `fetch` reads them with several commands outstanding and appends them,
`source` is the initiator's side of the wire. Any LUN that holds the documented format can be read.
"""
