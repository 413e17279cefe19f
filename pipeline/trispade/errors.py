"""The one error that a user meets: a line that names the file, what was expected, what was found, and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType


class InputError(ValueError):
    """Input, setting or environment that trispade cannot work with; its text is complete and fit for a user's eyes."""

    @classmethod
    def of(cls, subject: object, expected: str, found: str, remedy: str) -> InputError:
        """Build the house form: ``{subject}: expected {expected}, got {found}. {remedy}``."""
        return cls(f"{subject}: expected {expected}, got {found}. {remedy}")

    @classmethod
    def of_many(cls, headline: str, problems: Sequence[str]) -> InputError:
        """Report several problems at once, one a line, under a headline."""
        return cls("\n  - ".join([headline, *problems]))


def find_input_error(error: BaseException | None) -> InputError | None:
    """Follow ``__cause__`` and ``__context__`` to the `InputError` that a library has wrapped, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def show_input_errors_as_one_line() -> None:
    """Make an uncaught `InputError` end the program with its text and exit code 1 instead of a stack trace.

    ``python -m monai.bundle run`` wraps and re-raises whatever a component raises; the bundle's configs call this in
    ``initialize`` so that its users read the same line as those of the ``trispade`` command. Other errors keep
    their trace.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = find_input_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            print(f"trispade: {found}", file=sys.stderr)

    if getattr(previous, "__name__", "") != hook.__name__ or getattr(previous, "__module__", "") != __name__:
        sys.excepthook = hook
