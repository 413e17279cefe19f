"""How a run ends that cannot go on: in one line that names the file, what was expected and found, and the remedy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

STOPPED = "stopped; the same command goes on"
LONGEST_PART, LONGEST_LINE, MOST_LINES = 1000, 4000, 1000
"""Characters of each part of a message, of a line, and lines: a bad file must not flood whoever reads of it."""

LESS_MEMORY = (
    "Lower slice_batch_size (generators, inference), patch_batch_size (fusion net) or the number of num_workers, take a"
    " smaller preset, or free the memory."
)

LOST_PROCESS = (
    "Look for its own message; the same command goes on from the last checkpoint, with any number of processes."
)


class InputError(ValueError):
    """Input, setting or environment that trispade cannot work with; its text is complete and fit for a user's eyes.

    Whatever it quotes, its lines are printable and bounded in length and number.
    """

    def __init__(self, text: str) -> None:
        lines = text.split("\n", MOST_LINES)
        if len(lines) > MOST_LINES:
            lines[-1] = f"... and {lines[-1].count(chr(10)) + 1} lines more"
        super().__init__("\n".join(printable(line, LONGEST_LINE) for line in lines))

    @classmethod
    def of(cls, subject: object, expected: str, found: str, remedy: str) -> InputError:
        """Build the house form: ``{subject}: expected {expected}, got {found}. {remedy}``."""
        parts = (printable(str(part), LONGEST_PART) for part in (subject, expected, found, remedy))
        return cls("{}: expected {}, got {}. {}".format(*parts))

    @classmethod
    def of_many(cls, headline: str, problems: Sequence[str]) -> InputError:
        """Report several problems at once, one a line, under a headline."""
        return cls("\n  - ".join([headline, *problems]))


def printable(text: str, longest: int) -> str:
    """Give text with escapes for what a terminal would not show as it is, and its middle left out if it is long."""
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def find_input_error(error: BaseException | None) -> InputError | None:
    """Follow ``__cause__`` and ``__context__`` to the `InputError` that a library has wrapped, if there is one.

    A lack of memory that a library tells of is given as an `InputError` as well, and so is the loss of a process.
    """
    while error is not None and not isinstance(error, InputError):
        if _is_lack_of_memory(error):
            reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
            return InputError.of("memory", "room for the run", f"'{reason}'", LESS_MEMORY)
        if _is_lost_process(error):
            found = f"one that ended or did not answer in time ('{' '.join(str(error).split())[:200]}')"
            return InputError.of("processes", "all of them to take part in each step", found, LOST_PROCESS)
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def unwrapping_input_errors() -> Iterator[None]:
    """Raise the `InputError` that a library has wrapped in an error of its own, if there is one."""
    try:
        yield
    except Exception as error:
        found = find_input_error(error)
        if found is None or found is error:
            raise
        raise found from error


def _is_lack_of_memory(error: BaseException) -> bool:
    # By name: torch, whose error on GPUs this is, takes seconds to import; on CPUs it raises a plain RuntimeError.
    on_gpu = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _is_lost_process(error: BaseException) -> bool:
    # gloo raises plain RuntimeErrors, which begin with the place in its code.
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "gloo/transport" in str(error)


def show_input_errors_as_one_line() -> None:
    """Make an uncaught `InputError` end the program with its text and exit code 1 instead of a stack trace.

    ``python -m monai.bundle run`` wraps and re-raises whatever a component raises; the bundle's configs call this in
    ``initialize`` so that its users read the same line as those of the ``trispade`` command. Ctrl-C is told in one line
    too, with Python's exit code for it, 130 in a shell. Other errors keep their trace.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = find_input_error(error)
        if isinstance(error, KeyboardInterrupt):
            print(f"trispade: {STOPPED}", file=sys.stderr)
        elif found is None:
            previous(kind, error, trace)
        else:
            print(f"trispade: {found}", file=sys.stderr)

    if getattr(previous, "__name__", "") != hook.__name__ or getattr(previous, "__module__", "") != __name__:
        sys.excepthook = hook


def exit_on_sigterm() -> None:
    """Make SIGTERM, which schedulers send, end the program as Ctrl-C does: one line, nothing half-written, code 143.

    Without it the program would die on the spot, and leave its temporary files. A program that has a handler of its own
    for SIGTERM keeps it, and so does one that runs a stage in another than its main thread.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    # Not through sys.stderr, in the midst of whose writing the signal may have come.
    os.write(2, f"\ntrispade: {STOPPED}\n".encode())
    raise SystemExit(128 + number)
