"""In machine a: export a block device through LIO over iSCSI, to all who ask: NAME DEVICE TARGET ADDRESS:PORT

A DRBD device goes out as it is (iblock), everything else as a file with a write cache: our volumes have one.
"""

from __future__ import annotations

import sys

from rtslib_fb import (
    LUN,
    TPG,
    BlockStorageObject,
    FabricModule,
    FileIOStorageObject,
    NetworkPortal,
    RTSRoot,
    Target,
)

name, device, wwn, portal = sys.argv[1:]
RTSRoot()
if device.startswith("/dev/drbd"):
    storage = BlockStorageObject(f"bench-{name}", dev=device)
else:
    storage = FileIOStorageObject(f"bench-{name}", dev=device, write_back=True)
target = Target(FabricModule("iscsi"), wwn)
group = TPG(target, 1)
for attribute, value in (
    ("authentication", "0"),
    ("generate_node_acls", "1"),
    ("demo_mode_write_protect", "0"),
    ("cache_dynamic_acls", "1"),
):
    group.set_attribute(attribute, value)
address, _, port = portal.rpartition(":")
NetworkPortal(group, address, int(port))
LUN(group, 0, storage)
group.enable = True
