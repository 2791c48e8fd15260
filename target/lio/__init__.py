"""The Linux kernel's target as a front end: LIO speaks iSCSI and Fibre Channel, TCMU brings us its commands.

Reading order, the data path first:

    initiator
      │  iSCSI, FCP                                       the kernel
    LIO       target_core_user                            one ring of shared memory a volume
      │
    uio       volumes' devices found by name, mapped      I/O
    ring      entries in, responses out                   pure: the only code that knows the layout
    handler   a batch a turn → LogicalUnit.execute        the seam that the embedded target uses too
      │
    scsi …    as in `target`

Beside it, what LIO is told: `objects` (values), `desired` (from site.toml), `difference` (pure), `configfs`
(observe and apply, the only module that knows rtslib), `netlink` (what the kernel tells of its devices), and
`front_end`, which puts it together. `journal_device` reads a peer's journal where the kernel's initiator
attached it. Nothing outside of this package imports rtslib or pyudev.
"""
