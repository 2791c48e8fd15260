"""CRC-32C (Castagnoli; RFC 7143, *Digests*), by the processor's instruction if it has one: package crc32c.

Its `__init__` asks for its own version, for which importlib.metadata imports parsers of mail and of zip
files: measured, a fifth of the time that the daemon needs for all its imports, and hosts wait for a daemon
that is restarted. So the compiled part is loaded by itself.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crc32c import crc32c as crc32c


def _compiled() -> Any:
    package = PathFinder.find_spec("crc32c")
    directories = None if package is None else package.submodule_search_locations
    found = None if directories is None else PathFinder.find_spec("crc32c._crc32c", list(directories))
    if found is None or found.loader is None:
        import crc32c  # a version that is made of other parts

        return crc32c
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


crc32c = _compiled().crc32c
