"""Text and records that others wrote: read in bounded memory, held to a form, quoted in few characters."""

from __future__ import annotations

import contextlib
import json
import reprlib
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trispade.errors import InputError

LARGEST_TEXT = 32 << 20
"""Bytes of a manifest, table or record: 100,000 scans with all that can be said of them."""

MOST_VALUES = 3_000_000
"""Values in a JSON file: 30 for each of the 100,000 scans."""

BYTES_A_CHARACTER = 64
"""What reading takes at most, and never more than 512 MiB. A list of empty lists comes to 40, a manifest to 8."""

MOST_ROWS = 100_000
"""Rows of a manifest or a table."""

MOST_NESTED = 32
"""Lists and objects within one another, so that whatever walks through them comes to an end."""

LONGEST_NAME = 128
"""Characters of what becomes part of a file name or stands in a table: case ids, people, classes."""

_LARGEST_INTEGER = 2**63 - 1
_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", None: "null"}
_Fault = tuple[str, str]  # what is expected and what is found

_reprlib = reprlib.Repr()
_reprlib.maxlevel, _reprlib.maxstring, _reprlib.maxlong, _reprlib.maxother = 3, 80, 60, 80
_reprlib.maxdict = _reprlib.maxlist = _reprlib.maxtuple = _reprlib.maxset = 6


def quoted(value: object) -> str:
    """Give a value as Python writes it, in some hundred characters, however long it is."""
    try:
        return _reprlib.repr(value)[:400]
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"


def read_text(path: str | Path, expected: str, remedy: str = "Check the file.", largest: int = LARGEST_TEXT) -> str:
    """Read a file of UTF-8 text that is not too large.

    Args:
        path: of the file.
        expected: what it should be ("a manifest"), for the message.
        remedy: for the message, if there is a file.
        largest: bytes that it may have.

    Raises:
        InputError: if there is no such file, if it cannot be read, is too large or is not UTF-8.
    """
    path = Path(path)
    try:
        found = path.stat()
        is_regular, content = stat.S_ISREG(found.st_mode), b""
        if is_regular and found.st_size <= largest:  # a pipe would be waited for
            with path.open("rb") as file:
                content = file.read(found.st_size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError.of(path, expected, reason, "Check the path.") from error
    if not is_regular:
        raise InputError.of(path, expected, "something that is no file", "Check the path.")
    if found.st_size > largest:
        raise InputError.of(path, f"{expected} of at most {largest} bytes", "more", remedy)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError.of(path, expected, f"text that is not UTF-8, at byte {error.start}", remedy) from error


def read_json(path: str | Path, expected: str, remedy: str = "Check the file.") -> Any:
    """Read a JSON file.

    Raises:
        InputError: as `read_text`, and if it is not JSON, which knows no NaN, nested over 32 deep, or of over 3 million
            values.
    """
    text = read_text(path, expected, remedy)
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise InputError.of(path, f"{expected} of at most {MOST_VALUES} values", "more", remedy)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError.of(path, expected, f"text that is not JSON ({error})", remedy) from error
    except RecursionError as error:
        raise _nested(path, expected, remedy) from error
    level = [content]
    for _ in range(MOST_NESTED):
        nested = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in nested for each in values]
        if not level:
            return content
    raise _nested(path, expected, remedy)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def _nested(path: str | Path, expected: str, remedy: str) -> InputError:
    return InputError.of(path, expected, f"values nested over {MOST_NESTED} deep", remedy)


def is_file(path: str | Path) -> bool:
    """Tell whether there is a file, also of names that no file system takes."""
    with contextlib.suppress(OSError, ValueError):
        return Path(path).is_file()
    return False


def is_name(text: object) -> bool:
    """Tell whether a value is printable text of 1 to 128 characters."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST_NAME and text.isprintable()


def is_path(text: object) -> bool:
    """Tell whether a value is printable text that file systems take for a path."""
    if not isinstance(text, str) or not text.isprintable():
        return False
    return 0 < len(text) <= 2048 and max(len(part.encode()) for part in text.split("/")) <= 255


def check_form(subject: object, value: object, form: Any, remedy: str) -> None:
    """Check that a value from a file has the form that the code counts on.

    Args:
        subject: file, for the message.
        value: from it.
        form: ``str``, ``bool``, ``int`` (no bool, 64 bits), ``float`` (finite, integers too), None or another type; a
            tuple of alternatives; ``[form]``, a list of such; ``{key: form}``, a mapping with these keys at least, but
            for those that end in "?"; ``{str: form}``, a mapping from any text to such. ``object`` may be anything.
        remedy: last sentence of the message.

    Raises:
        InputError: that names the first place whose value is another.
    """
    fault = _fault(value, form, "")
    if fault is not None:
        raise InputError.of(subject, *fault, remedy)


def _fault(value: object, form: Any, place: str) -> _Fault | None:
    """Find the first place whose value is another."""
    if isinstance(form, tuple):
        fits = any(_fault(value, each, place) is None for each in form)
    elif isinstance(form, list) and isinstance(value, list | tuple):
        faults = (_fault(each, form[0], f"{place}[{number}]") for number, each in enumerate(value))
        return next(filter(None, faults), None)
    elif isinstance(form, dict) and isinstance(value, Mapping):
        return next(filter(None, _faults_of_keys(value, form, place)), None)
    else:
        fits = _is(value, form)
    return None if fits else (_in_words(form) + (f" under {place!r}" if place else ""), quoted(value))


def _faults_of_keys(value: Mapping[Any, Any], form: Mapping[Any, Any], place: str) -> Iterator[_Fault | None]:
    if str in form:
        for key, each in value.items():
            if not isinstance(key, str):
                yield f"text as keys of {place!r}", quoted(key)
            yield _fault(each, form[str], f"{place}.{key}".lstrip("."))
        return
    for key, each in form.items():
        name = key.removesuffix("?")
        below = f"{place}.{name}".lstrip(".")
        if name in value:
            yield _fault(value[name], each, below)
        elif name == key:
            yield f"the key {below!r}", "none"


def _is(value: object, form: Any) -> bool:
    if form is None:
        return value is None
    if form is float:  # the comparison is false for NaN
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INTEGER
    return isinstance(form, type) and isinstance(value, form)


def _in_words(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(map(_in_words, form))
    if isinstance(form, dict | list):
        return "an object" if isinstance(form, dict) else "a list"
    return _WORDS.get(form) or f"a {form.__name__}"
