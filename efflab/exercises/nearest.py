"""Errors for names that are not known. A bank has many names, so only the nearest few are listed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from efflab.errors import EfflabError

MOST = 5


def nearest(what: str, name: object, known: Iterable[str], mend: str) -> EfflabError:
    """The error for a name that is not known, with at most five of the known ones.

    Args:
        what: the kind of name, "question".
        name: what was given.
        known: all names, the likelier ones first; where none resembles `name`, the first five are listed.
        mend: a sentence that says where all of them are listed.
    """
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=MOST, cutoff=0.5)
    shown = [folded[k] for k in close] or list(folded.values())[:MOST]
    hint = f"Did you mean {' or '.join(map(repr, shown))}? " if close else f"Some are {', '.join(shown)}. "
    return EfflabError(f"{what}: {name!r} is not known. {hint if shown else ''}{mend}")
