"""The storage subsystem of one site: `python -m target --config site.toml`. Start reading here.

The data path, in the direction in which data flow, with the modules of each step in reading order. All of it
is on one thread (`loop`) but for work that blocks, which goes to lanes:

    initiator                                             a host, or `replctl lun`
      │  iSCSI PDUs
    iscsi     portal → connection → login → session       sockets; then sans-I/O from the first byte on
      │                                                   or `lio`: the kernel's target, rings of commands
      │  ScsiCommand (scsi.command)
    scsi      device_server → logical_unit → operations   LUNs, CDBs, sense data; knows no transport
      │  Volume (volume)
    group     group_volume → ConsistencyGroup             may this site write now? one order for all volumes
      │
    obtain    WritePath                                   append to the journal, acknowledge; commit
      │           journal.record, ring                    packs with a hash chain, one pwritev a turn
      │           overlay, reading                        the newest content, until the volume has it
      ├──────► background → restore                       apply what is durable; checkpoint; blockdev
      │
    SAN link  device_volume at the primary                the journal logical unit: READ (16), nothing else
      │       san.source → san.fetch → san.intake         at the secondary: read, judge, append, commit
      │
    journal of the secondary
      │       background → restore                        the same, of what was received, up to a limit
    data volume of the secondary

Beside the path: `device_files`, `journal.superblock`, `recovery`, `scan`, `format` and `open_group` (what a
start finds); `mirrors`, `bitmap`, `base_copy` and `pairing` (what a secondary lacks, and how it gets it);
`histories`, `fencing` and `settling` (epochs: promote, demote, follow); `control` (what the copy manager may
ask); `listeners` (who hears that a group changed); `engine` and `subsystem`, which put it together. Seams:
`scheduler`, `blockdev`, `volume`, `scsi.command`, `san.fetch.JournalSource`.

Where each invariant is kept:

- I1, no flushed write is lost: `obtain.WritePath._append` and `_committed` are the only places that answer
  a write; `journal.ring.Journal.begin_commit` states durability; `journal.recovery` decides after a crash.
- I2, the secondary is a prefix: `san.intake` passes only the next pack of the chain; `restore` takes
  records in order and stops exactly at its limit.
- I3, the data volume holds nothing that the durable journal does not: `background.Background._goal`.
- I4, only what is durable is shipped: `san.fetch.Fetch.advance` is how far a fetch may read, and it is told
  durable positions alone.
- I5, doing it again changes nothing: `restore` writes content, not differences, from a boundary that a
  checkpoint proved; `journal.ring.Journal.restart_at` keeps old packs from being taken for new ones.
- I6, never better than the truth: `control.state`, and `group.ConsistencyGroup.consistent`.
- I7, no full copy that was not asked for: `pairing` marks everything in `add_mirror` alone, and refuses a
  resync that neither journal nor bitmap covers.
"""
