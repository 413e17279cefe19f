"""Label schemes and vocabularies with anything in them: one that maps every id, or one clear line a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import (
    MIB,
    TEXTS,
    assert_clear_lines,
    bounded,
    few_or_many,
    for_each,
    spoilt_json,
    spoilt_records,
    spoilt_texts,
)
from hypothesis import strategies as st

from trispade.errors import InputError
from trispade.labels import (
    LARGEST_ID,
    LONGEST_LINE_OF_PARENTS,
    MAX_CLASSES,
    LabelClass,
    Vocabulary,
    _read_scheme,
    load_scheme,
)
from trispade.untrusted import BYTES_A_CHARACTER, LARGEST_TEXT, MOST_ROWS

SCHEME = [["id", "name", "class"], ["2", "white", "wm"], ["17", "plexus", "plexus"], ["41", "White", "wm"]]
VOCABULARY = [
    ["index", "name", "parent", "tissue", "side"],
    ["0", "background", "", "background", ""],
    ["1", "wm", "", "wm", ""],
    ["2", "csf", "", "csf", ""],
    ["3", "plexus", "csf", "csf", "left"],
]
SIDECAR = {"vocabulary": "words.tsv", "table": "mine.tsv", "trim_csf": True, "source": "none"}
CELLS = st.one_of(
    st.sampled_from(
        [*TEXTS, "0", "-1", "1.0", "2147483647", "2147483648", "9" * 5000, "\u0663", "\u00b2", '"', '""', "\t"]
    ),
    st.sampled_from([cell for row in (*SCHEME, *VOCABULARY) for cell in row]),
    st.text(max_size=10),
)


def spoilt_tables(table: list[list[str]]) -> st.SearchStrategy[bytes]:
    """A TSV of which some cells, rows or bytes are others."""
    return spoilt_texts(st.builds(as_tsv, st.one_of(st.just(table), spoilt_records(table, CELLS))))


def as_tsv(table: Any) -> str:
    return "".join(("\t".join(row) if isinstance(row, list) else str(row)) + "\n" for row in table)


@few_or_many(250, 4000)
def test_whatever_a_scheme_and_its_vocabulary_hold_they_are_read_or_each_fault_is_one_clear_line(
    tmp_path: Path, num_examples: int
) -> None:
    def hold(sidecar: bytes, scheme: bytes, vocabulary: bytes) -> None:
        for name, content in {"mine.json": sidecar, "mine.tsv": scheme, "words.tsv": vocabulary}.items():
            (tmp_path / name).write_bytes(content)
        _read_scheme.cache_clear()
        size = len(sidecar) + len(scheme) + len(vocabulary)
        try:
            with bounded(4 + BYTES_A_CHARACTER * size / MIB):
                read = load_scheme(tmp_path / "mine.tsv")
                read.vocabulary.fallback_table(
                    [index for index, each in enumerate(read.vocabulary.classes) if not each.parent]
                )
        except InputError as error:
            assert_clear_lines(error, tmp_path, "vocabulary 'words'", "/etc/hostname")  # one of the TEXTS
            return
        with bounded():
            ids = np.array(sorted(read.ids))
            assert ids[0] == 0
            assert ids[-1] <= LARGEST_ID
            indices = read.to_indices(ids, "label map")
            assert indices.max() < read.vocabulary.num_classes
            assert Vocabulary.from_dict(json.loads(json.dumps(read.vocabulary.to_dict()))) == read.vocabulary

    sidecars = st.one_of(st.just(json.dumps(SIDECAR).encode()), spoilt_json(SIDECAR))
    for_each(num_examples, hold, sidecars, spoilt_tables(SCHEME), spoilt_tables(VOCABULARY))


@few_or_many(100, 4000)
def test_whatever_the_record_of_a_vocabulary_holds_it_is_one_or_one_clear_line(num_examples: int) -> None:
    record = {"name": "four", "classes": [dict(zip(VOCABULARY[0][1:], row[1:], strict=True)) for row in VOCABULARY[1:]]}
    for each in record["classes"]:
        each["parent"] = each["parent"] or None

    def hold(spoilt: Any) -> None:
        try:
            with bounded():
                vocabulary = Vocabulary.from_dict(spoilt)
        except InputError as error:
            assert_clear_lines(error, "vocabulary ")
        else:
            assert all(each.name.isprintable() for each in vocabulary.classes)

    for_each(num_examples, hold, spoilt_records(record))


@pytest.mark.parametrize("num_classes", [5000, MAX_CLASSES])
def test_a_scheme_of_thousands_of_classes_is_read_in_bounded_time(tmp_path: Path, num_classes: int) -> None:
    parents = ["" if index % 30 < 2 else f"c{index - 1}" for index in range(num_classes)]
    rows = [f"{i}\tc{i}\t{parents[i]}\t{'csf' if i else 'background'}\t\n" for i in range(num_classes)]
    (tmp_path / "words.tsv").write_text("index\tname\tparent\ttissue\tside\n" + "".join(rows))
    (tmp_path / "mine.json").write_text('{"vocabulary": "words.tsv"}')
    (tmp_path / "mine.tsv").write_text("id\tname\tclass\n" + "".join(f"{i}\tx\tc{i}\n" for i in range(num_classes)))
    with bounded():
        scheme = load_scheme(tmp_path / "mine.tsv")
        roots = [index for index in range(num_classes) if not parents[index]]
        assert scheme.vocabulary.fallback_table(roots).max() < num_classes
        assert scheme.to_indices(np.arange(num_classes), "label map").tolist() == list(range(num_classes))


@pytest.mark.parametrize(("length", "closed"), [(LONGEST_LINE_OF_PARENTS + 2, False), (MAX_CLASSES, True)])
def test_a_line_of_parents_that_is_long_or_closed_is_refused_in_bounded_time(length: int, closed: bool) -> None:
    classes = [LabelClass("background", None, "background", "")]
    classes += [LabelClass(f"c{i}", f"c{i + 1}" if i < length - 1 else None, "csf", "") for i in range(1, length)]
    if closed:
        classes[-1] = LabelClass(f"c{length - 1}", "c1", "csf", "")
    with pytest.raises(InputError, match="its line of parents is over 32 long") as caught, bounded():
        Vocabulary("long", tuple(classes))
    assert_clear_lines(caught.value, "vocabulary 'long'")


def test_tables_of_too_many_rows_or_bytes_are_refused_in_bounded_time(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"vocabulary": "structures"}')
    table = tmp_path / "mine.tsv"
    for unit in ("0\tx\tcsf\n", "\t\t\n"):
        table.write_text("id\tname\tclass\n" + unit * (LARGEST_TEXT // len(unit) - 100))
        with pytest.raises(InputError, match=rf"mine.tsv: expected at most {MOST_ROWS} rows, got more"), bounded():
            load_scheme(table)
    table.write_text("id\tname\tclass\n" + "\n" * LARGEST_TEXT)
    with pytest.raises(InputError, match=rf"a readable TSV of at most {LARGEST_TEXT} bytes, got more"), bounded():
        load_scheme(table)
    table.write_text("id\tname\tclass\n0\t" + "x" * 200_000 + "\tcsf\n")
    with pytest.raises(InputError, match=r"a readable TSV, got field larger than field limit"), bounded():
        load_scheme(table)
