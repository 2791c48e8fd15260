"""Which tests of libiscsi's suite skip themselves, and why: what the suite's run is judged by.

`scripts/scsi-support` puts the same list into docs/scsi-support.md. A test that skips only a part of itself
is named too.
"""

from __future__ import annotations

_REMOVABLE = {
    *(f"PreventAllow.{name}" for name in ("Simple", "Eject", "ITNexusLoss", "Logout")),
    *(f"PreventAllow.{name}" for name in ("WarmReset", "ColdReset", "LUNReset", "2ITNexuses")),
    *("NoMedia.NoMediaSBC", "StartStopUnit.Simple", "StartStopUnit.PwrCnd", "StartStopUnit.NoLoej"),
}
_SANITIZE = {
    *(f"Sanitize.{name}" for name in ("BlockErase", "BlockEraseReserved", "CryptoErase")),
    *(f"Sanitize.{name}" for name in ("CryptoEraseReserved", "ExitFailureMode", "InvalidServiceAction")),
    *(f"Sanitize.{name}" for name in ("Overwrite", "OverwriteReserved", "Readonly", "Reservations", "Reset")),
}
_LARGE_PHYSICAL_BLOCKS = {
    *(f"WriteSame{size}.{name}" for size in (10, 16) for name in ("UnmapUnaligned", "InvalidDataOutSize")),
    "CompareAndWrite.InvalidDataOutSize",
}

SKIPS: dict[str, set[str]] = {
    "the unit is not removable; with `removable = true` these run and pass": _REMOVABLE,
    "the unit is not write-protected; on one that is, it runs and passes": {"ReadOnly.ReadOnlySBC"},
    "SANITIZE is not supported: what it must make unreadable stays in the journal, and at every secondary; "
    "the suite runs these only with an option of their own": _SANITIZE,
    "they need physical blocks of several logical blocks, and here one is one": _LARGE_PHYSICAL_BLOCKS,
    "zero blocks, for all up to the end, are refused (WSNZ): no command may take as long as that": {
        f"WriteSame{size}.ZeroBlocks" for size in (10, 16)
    },
    "there is nothing to refuse: atomic writes may be of any alignment and granularity (the rest runs)": {
        "WriteAtomic16.VPD"
    },
}

REMOVABLE_TESTS = _REMOVABLE

ALL_SKIPPED: set[str] = {name for names in SKIPS.values() for name in names}
