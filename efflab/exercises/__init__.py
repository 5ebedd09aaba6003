"""Exercises: questions, checking an answer, hints, progress.

    from efflab.exercises import check, hint, progress, show

    show("roofline-1")                  the question
    hint("roofline-1")                  the next hint
    check("roofline-1", "206 FLOP/B")   check an answer; the points are kept in the lab book
    progress                            points so far

The checks are a self-test. The bank is in the open in this package, and on the site the answers are only
sealed against a glance at the page's source.
"""

from efflab.exercises.grading import CheckFailed, Result, check, hint, show
from efflab.exercises.progress_file import progress

__all__ = ["CheckFailed", "Result", "check", "hint", "progress", "show"]
