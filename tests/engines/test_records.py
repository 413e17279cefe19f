from __future__ import annotations

import pytest

from trispade.engines import check_record, describe_training
from trispade.errors import InputError
from trispade.labels import LabelClass, Vocabulary


def vocabulary(*names: str, name: str = "small") -> Vocabulary:
    return Vocabulary(
        name, tuple(LabelClass(each, None, "other" if i else "background", "") for i, each in enumerate(names))
    )


VOCABULARY = vocabulary("background", "white", "grey", "csf")
ARCHITECTURE = {"ngf": 4, "hidden": 8, "max_channels": None}
SETTINGS = {"spacing_mm": 1.0, "box": [32, 32, 32], "vocabulary": VOCABULARY}


@pytest.fixture
def record(make_case):
    cases = [make_case("a", "p2"), make_case("b", "p1"), make_case("c", "p2")]
    return describe_training(cases, VOCABULARY, ARCHITECTURE, SETTINGS, plane="axial", preset="smoke")


def test_a_record_tells_who_and_what_the_network_was_trained_on(record):
    assert record["people"] == ["p1", "p2"]
    assert record["trained_classes"] == [0, 1, 2, 3]
    assert record["plane"] == "axial"
    assert Vocabulary.from_dict(record["vocabulary"]) == VOCABULARY
    assert record["settings"]["vocabulary"].startswith("small (4 classes, ")


def test_a_record_agrees_with_itself(record):
    check_record("last.pt", record, **record)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"plane": "coronal"}, "plane 'coronal', got 'axial'"),
        ({"architecture": {**ARCHITECTURE, "ngf": 64}}, "architecture {.*'ngf': 64.*}, got {.*'ngf': 4"),
        ({"vocabulary": vocabulary("background", "x").to_dict()}, "vocabulary 'small' of 2 classes, got 'small' of 4"),
        (
            {"vocabulary": vocabulary("background", "grey", "white", "csf").to_dict()},
            "vocabulary 'small' of 4 classes, got another vocabulary of that description",
        ),
        ({"people": [f"p{i}" for i in range(9)]}, r"people 'p0', 'p1', 'p2' ... \(9 in all\), got \['p1', 'p2'\]"),
    ],
)
def test_a_checkpoint_of_another_training_is_one_clear_line(record, expected, message):
    with pytest.raises(InputError, match=f"^last.pt: expected a checkpoint with {message}") as caught:
        check_record("last.pt", record, **expected)
    assert "\n" not in str(caught.value)
    assert "train it again" in str(caught.value)


def test_a_file_without_a_record_is_refused():
    with pytest.raises(InputError, match=r"last.pt: expected a checkpoint with plane 'axial', got None"):
        check_record("last.pt", {}, plane="axial")
