"""Looking up what a person typed: a name that exists, or an error that says which one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from target.errors import OperatorError


def known_name(what: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`; else `OperatorError` with the nearest, or with all there are."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "there are: " + (", ".join(names) or "none")
    raise OperatorError(f"no {what} {name}; {hint}")
