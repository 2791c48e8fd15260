"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# No test judges by absolute time: a machine that does other work too is no error.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
