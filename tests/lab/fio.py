"""fio on a host, that writes, and reads what it wrote, again and again, while a test disturbs it."""

from __future__ import annotations

from tests.lab.two_sites import Host, TwoSites

_FIO = (
    "fio --name=verified --size=8m --rw=randwrite --bs=4k --iodepth=16 --direct=1 --fsync=32"
    " --ioengine=libaio --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse"
)
_ENOUGH = "/run/enough"
_SAID = "/run/fio.out"


class VerifiedLoad:
    """Passes of 8 MiB at random places of a file or a device, one after the other until it is ended."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self, file: str) -> None:
        passes = f"until [[ -e {_ENOUGH} ]]; do {_FIO} --filename={file} || exit 1; done"
        self._host.run(
            f"rm -f {_ENOUGH} {_SAID}; systemctl reset-failed verified 2>/dev/null\n"
            f"systemd-run --quiet --unit verified --property StandardOutput=append:{_SAID} bash -c '{passes}'"
        )

    def check_running(self) -> None:
        """No write has failed, and nothing was read but what was written."""
        assert self._running(), self._said()

    def end(self, sites: TwoSites) -> None:
        """After the pass that runs, which must be right to its end, as all before it."""
        self._host.run(f"touch {_ENOUGH}")
        sites.wait_for("fio ends", lambda: not self._running())
        assert self._host.run("systemctl is-failed verified || true").strip() == "inactive", self._said()

    def _running(self) -> bool:
        return self._host.run("systemctl is-active verified || true").strip() == "active"

    def _said(self) -> str:
        return self._host.run(f"cat {_SAID}")
