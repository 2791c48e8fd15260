"""paramiko, without what only a part of it wants that is not used here.

It tries to import `invoke`, for `Match exec` in an ssh_config that nobody here reads, and goes on without it.
Where it is installed it brings asyncio, ssl and unittest: a quarter of the time in which a host agent starts.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]  # None: an import of it fails

import paramiko  # noqa: E402
import paramiko.common as ssh_codes  # noqa: E402

__all__ = ["paramiko", "ssh_codes"]
