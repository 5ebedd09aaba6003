"""The error that efflab shows to a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EfflabError(ValueError):
    """Bad input. The message names the input, what is wrong with it and the mend.

    The command line prints the message alone and exits with status 2. A notebook shows it without the traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def unknown(what: str, name: object, known: Iterable[str]) -> EfflabError:
    """Return the error for a name that is not known, with the nearest known ones."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    close = [folded[k] for k in difflib.get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return EfflabError(f"{what}: {name!r} is not known. {hint}Known: {', '.join(known)}.")
