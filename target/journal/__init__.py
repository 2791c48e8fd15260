"""The journal volume: an append-only ring of packs, hash-chained, recoverable, readable by other programs.

Reading order: `record` (packs and records, the byte tables), `superblock`, `recovery` (the decision table),
`scan` (reading packs back), `ring` (the `Journal` itself: append, receive, commit, tail).
docs/journal-format.md is the same format for people who write another program.
"""
