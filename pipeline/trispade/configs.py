"""Reading a bundle's configs: what cannot be a config is refused in one line before anything in it is run.

What a config's expressions and components do when they run is the bundle's matter: its configs are code, and whoever
receives them checks them as such (`trispade.sharing.verify_bundle`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trispade.errors import InputError
from trispade.untrusted import MOST_NESTED, read_json, read_text

LARGEST_CONFIG = 64 << 10
"""Bytes: five times the longest of ours. YAML takes a second for that much."""

CODE_SIGNS = ("$", "@", "%")
"""How expressions, references and macros begin."""

MOST_REFERRING = 64
"""Parts of a config that refer to one another in a line."""

_REMEDY = "Correct the file."


def read_configs(
    files: Sequence[Path], values: Mapping[str, Any], wanted: Sequence[str], known: Sequence[str] = ()
) -> Any:
    """Read configs, the later over the earlier.

    Args:
        files: YAML, or JSON.
        values: of keys, which come last.
        wanted: keys of the config that are to be built or run; what they need must be there.
        known: keys that must be in the files, whether or not they have a value.

    Returns:
        The ``monai.bundle.ConfigParser``, of which nothing is built yet.

    Raises:
        InputError: if a file is too large, no YAML, nested over 32 deep, or has anchors or macros; if a setting is
            none of its kind, or a reference leads nowhere or in a circle.
    """
    from monai.bundle import ConfigParser  # seconds of import, which `trispade --help` need not take

    from trispade.settings import check_settings

    parser = ConfigParser()
    for file in files:
        _check_text(file)
    try:
        for file in files:
            content = ConfigParser.load_config_file(str(file))
            if not isinstance(content, dict):
                raise InputError.of(file, "settings by name", type(content).__name__, _REMEDY)
        parser.read_config([str(file) for file in files])
        unknown = [key for key in known if key not in parser]
        if unknown:
            raise InputError.of(files[0], "settings that it has", ", ".join(unknown), "Correct their names.")
        parser.update(dict(values))
        _refuse_macros(parser.get(), files[0])
        parser.parse()
    except InputError:
        raise
    except Exception as error:  # yaml and MONAI raise whatever a part of the text leads them to; none of it is run yet
        raise _not_a_config(file, error) from error
    check_settings(parser.get(), files[0])
    _check_references(files[0], parser.ref_resolver, wanted)
    return parser


def _check_text(file: Path) -> None:
    if file.suffix == ".json":
        read_json(file, "a config", _REMEDY)
        return
    import yaml  # which whoever has a packaged bundle, whose configs are JSON, need not have

    depth = 0
    try:
        for event in yaml.parse(read_text(file, "a config", _REMEDY, LARGEST_CONFIG), Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                where = f"'{anchor}' at line {_line_of(event.start_mark)}"
                remedy = "Write it out, or refer to it with @: aliases of aliases grow beyond any memory."
                raise InputError.of(file, "a config without anchors and aliases", where, remedy)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_NESTED:
                raise InputError.of(file, "a config", f"values nested over {MOST_NESTED} deep", _REMEDY)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _not_a_config(file, error) from error


def _not_a_config(file: Path, error: Exception) -> InputError:
    mark = getattr(error, "problem_mark", None)  # of YAML's errors
    if mark is not None:
        where = f"line {_line_of(mark)}, column {mark.column + 1}"
        return InputError.of(file, "YAML", f"{getattr(error, 'problem', error)} at {where}", _REMEDY)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError.of(file, "a config", f"'{reason}'", _REMEDY)


def _line_of(mark: Any) -> int:
    return int(mark.line) + 1


def _refuse_macros(config: Any, file: Path) -> None:
    """A macro puts in a copy of another part or file; copies of copies grow beyond any memory."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value.startswith("%"):
            raise InputError.of(file, "a config without macros", f"{value!r}", "Write it out, or refer to it with @.")
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def _check_references(file: Path, resolver: Any, wanted: Sequence[str]) -> None:
    """Follow the references of what is wanted, depth first, as MONAI will."""
    done: set[str] = set()
    line: dict[str, Iterator[str]] = {"": iter([id_ for id_ in wanted if id_ in resolver.items])}
    while line:
        id_ = next(line[last := next(reversed(line))], None)
        if id_ is None:
            line.popitem()
            done.add(last)
        elif id_ in line:
            raise InputError.of(file, "references that end", f"'@{id_}', which refers to itself", _REMEDY)
        elif id_ not in resolver.items:
            raise InputError.of(file, f"'{id_}', to which '{last}' refers", "none", "Add it, or correct the reference.")
        elif len(line) > MOST_REFERRING:
            raise InputError.of(file, f"references at most {MOST_REFERRING} in a line", "more", _REMEDY)
        elif id_ not in done:
            line[id_] = iter(resolver.find_refs_in_config(resolver.items[id_].get_config(), id_))
