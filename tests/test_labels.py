from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trispade.errors import InputError
from trispade.labels import (
    LabelClass,
    LabelScheme,
    Vocabulary,
    load_scheme,
    load_vocabulary,
    schemes_folder,
)

DATA = Path(os.environ.get("TRISPADE_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
BUNDLED = ("freesurfer", "neuromorphometrics", "malc_all", "synthseg")
needs_real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (DATA / "malc2012").is_dir(), reason=f"no scans under {DATA}"),
]


def write_scheme(folder: Path, rows: str, sidecar: object = None) -> Path:
    path = folder / "mine.tsv"
    path.write_text("id\tname\tclass\n" + rows)
    path.with_suffix(".json").write_text(json.dumps({"vocabulary": "structures"} if sidecar is None else sidecar))
    return path


def write_vocabulary(folder: Path, rows: str) -> Path:
    path = folder / "words.tsv"
    path.write_text("index\tname\tparent\ttissue\tside\n" + rows)
    return path


def small_vocabulary() -> Vocabulary:
    return Vocabulary(
        "small",
        (
            LabelClass("background", None, "background", ""),
            LabelClass("grey", None, "gm", ""),
            LabelClass("deep_grey", "grey", "gm", ""),
            LabelClass("left_nucleus", "deep_grey", "gm", "left"),
            LabelClass("white", None, "wm", ""),
        ),
    )


def test_structures_holds_the_25_canonical_classes_in_order():
    vocabulary = load_vocabulary("structures")
    assert vocabulary.num_classes == 25
    assert vocabulary.names[:4] == ("background", "cerebral_white_matter", "cerebral_cortex", "lateral_ventricle")
    assert vocabulary.names[-4:] == (
        "optic_chiasm",
        "choroid_plexus",
        "white_matter_hypointensity",
        "white_matter_lesion",
    )
    assert vocabulary.index("csf") == 7


def test_structures_merges_the_sides_and_malc_all_does_not():
    assert load_scheme("freesurfer").vocabulary.merges_sides
    assert not load_scheme("malc_all").vocabulary.merges_sides


@pytest.mark.parametrize("name", BUNDLED)
def test_every_class_of_a_bundled_scheme_is_reachable_or_belongs_to_another_source(name: str):
    scheme = load_scheme(name)
    unreachable = {scheme.vocabulary.names[i] for i in range(scheme.vocabulary.num_classes)} - {
        scheme.vocabulary.names[i] for i in scheme.ids.values()
    }
    expected = {"choroid_plexus", "white_matter_hypointensity"} if name == "neuromorphometrics" else set()
    assert unreachable == expected


@pytest.mark.parametrize("name", BUNDLED)
def test_the_sidecar_of_a_bundled_scheme_says_where_it_is_from(name: str):
    sidecar = json.loads((schemes_folder() / f"{name}.json").read_text())
    own = {"table", "trim_csf"} if name == "synthseg" else set()
    assert set(sidecar) == {"vocabulary", "description", "source", "license"} | own


@pytest.mark.parametrize(
    ("label_id", "class_name"),
    [
        (2, "cerebral_white_matter"),
        (42, "cerebral_cortex"),
        (1035, "cerebral_cortex"),
        (2000, "cerebral_cortex"),
        (11175, "cerebral_cortex"),
        (12100, "cerebral_cortex"),
        (3035, "cerebral_white_matter"),
        (4001, "cerebral_white_matter"),
        (5002, "cerebral_white_matter"),
        (255, "cerebral_white_matter"),
        (5, "inferior_lateral_ventricle"),
        (14, "third_ventricle"),
        (15, "fourth_ventricle"),
        (72, "csf"),
        (24, "csf"),
        (63, "choroid_plexus"),
        (137, "choroid_plexus"),
        (77, "white_matter_hypointensity"),
        (57, "white_matter_lesion"),
        (530, "background"),
    ],
)
def test_freesurfer_ids_reach_their_structures(label_id: int, class_name: str):
    scheme = load_scheme("freesurfer")
    assert scheme.vocabulary.names[scheme.ids[label_id]] == class_name


@pytest.mark.parametrize(
    ("label_id", "class_name"),
    [
        (4, "third_ventricle"),
        (23, "accumbens"),
        (30, "accumbens"),
        (42, "cerebral_cortex"),
        (72, "cerebellar_cortex"),
        (74, "background"),
        (65, "cerebral_cortex"),
        (76, "basal_forebrain"),
        (207, "cerebral_cortex"),
        (53, "white_matter_lesion"),
    ],
)
def test_neuromorphometrics_ids_reach_their_structures(label_id: int, class_name: str):
    scheme = load_scheme("neuromorphometrics")
    assert scheme.vocabulary.names[scheme.ids[label_id]] == class_name


def test_left_and_right_twins_share_a_class_in_freesurfer_and_not_in_malc_all():
    def name_pairs(scheme: LabelScheme) -> list[tuple[str, str]]:
        rows = [line.split("\t") for line in scheme.path.read_text().splitlines()[1:]]
        class_of = {row[1]: row[2] for row in rows}
        lefts = [name for name in class_of if name.startswith(("Left", "ctx-lh", "wm-lh"))]
        twin = {name: name.replace("Left", "Right").replace("-lh", "-rh") for name in lefts}
        return [(class_of[name], class_of[twin[name]]) for name in lefts]

    merged, apart = name_pairs(load_scheme("freesurfer")), name_pairs(load_scheme("malc_all"))
    assert len(merged) > 90
    assert len(apart) > 60
    assert all(left == right for left, right in merged)
    assert all(left == right.replace("right", "left") and left != right for left, right in apart)


def test_loading_a_scheme_twice_gives_the_same_object_and_a_scheme_is_passed_through():
    scheme = load_scheme("freesurfer")
    assert load_scheme("freesurfer") is scheme
    assert load_scheme(scheme.path) is scheme
    assert load_scheme(scheme) is scheme


def test_synthseg_reads_ids_as_freesurfer_does_and_trims_csf():
    synthseg, freesurfer = load_scheme("synthseg"), load_scheme("freesurfer")
    assert (synthseg.name, synthseg.trim_csf, freesurfer.trim_csf) == ("synthseg", True, False)
    assert (synthseg.ids, synthseg.vocabulary) == (freesurfer.ids, freesurfer.vocabulary)
    assert load_scheme(schemes_folder() / "synthseg.json") is synthseg
    plexus = synthseg.vocabulary.index("choroid_plexus")
    np.testing.assert_array_equal(synthseg.to_indices(np.array([136, 137, 163, 164, 31, 63]), "case"), [plexus] * 6)


def test_a_scheme_may_use_the_table_of_another_one(tmp_path: Path):
    write_scheme(tmp_path, "24\tfluid\tcsf\n")
    (tmp_path / "other.json").write_text('{"vocabulary": "structures", "table": "mine.tsv", "trim_csf": true}')
    scheme = load_scheme(tmp_path / "other.json")
    assert (scheme.name, scheme.path, scheme.ids) == ("other", tmp_path / "mine.tsv", {24: 7, 0: 0})


def test_a_table_that_is_not_there_is_named(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"vocabulary": "structures", "table": "none.tsv"}')
    with pytest.raises(InputError, match=r"none\.tsv: expected a readable TSV"):
        load_scheme(tmp_path / "other.json")


def test_whether_csf_is_trimmed_is_true_or_false(tmp_path: Path):
    path = write_scheme(tmp_path, "", {"vocabulary": "structures", "trim_csf": "yes"})
    with pytest.raises(InputError, match=r"mine\.json: expected true or false under 'trim_csf', got 'yes'"):
        load_scheme(path)


def test_a_scheme_survives_pickling_and_can_be_a_dictionary_key():
    scheme = load_scheme("freesurfer")
    assert pickle.loads(pickle.dumps(scheme)) == scheme
    assert {scheme: 1}[scheme] == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_ids_become_indices_whatever_their_type(dtype: type):
    ids = np.array([[0, 2, 3], [17, 53, 16]], dtype=dtype)
    indices = load_scheme("freesurfer").to_indices(ids, "case")
    np.testing.assert_array_equal(indices, [[0, 1, 2], [15, 15, 10]])
    assert indices.dtype == np.uint8


def test_indices_of_more_than_256_classes_are_int16(tmp_path: Path):
    rows = "".join(f"{i}\tclass_{i}\t\t{'gm' if i else 'background'}\t\n" for i in range(300))
    write_vocabulary(tmp_path, rows)
    scheme = load_scheme(
        write_scheme(
            tmp_path, "".join(f"{7 * i}\tx\tclass_{i}\n" for i in range(300)), sidecar={"vocabulary": "words.tsv"}
        )
    )
    indices = scheme.to_indices(np.array([0, 7, 2093]), "case")
    assert indices.dtype == np.int16
    np.testing.assert_array_equal(indices, [0, 1, 299])


def test_all_unknown_ids_are_listed_sorted_with_scheme_and_remedy():
    ids = np.array([872, 2, 871, 872, 0])
    with pytest.raises(
        InputError, match=r"sub-012.*label ids 871, 872 are not in scheme 'freesurfer' \(.*tsv\)"
    ) as caught:
        load_scheme("freesurfer").to_indices(ids, "sub-012_dseg.nii.gz")
    assert "unknown_labels=background" in str(caught.value)


def test_ids_that_are_huge_or_negative_are_reported_without_a_huge_table():
    ids = np.array([2, 2_000_000_000, -5])
    with pytest.raises(InputError, match="label ids -5, 2000000000 are not in"):
        load_scheme("freesurfer").to_indices(ids, "case")
    np.testing.assert_array_equal(load_scheme("freesurfer").to_indices(ids, "case", "background"), [1, 0, 0])


def test_a_scheme_may_hold_an_id_beyond_the_table(tmp_path: Path):
    scheme = load_scheme(write_scheme(tmp_path, "90000\tfar\tcsf\n"))
    np.testing.assert_array_equal(scheme.to_indices(np.array([[90000, 0]]), "case"), [[7, 0]])


def test_unknown_ids_become_background_on_request():
    indices = load_scheme("freesurfer").to_indices(np.array([2, 871]), "case", unknown_labels="background")
    np.testing.assert_array_equal(indices, [1, 0])


def test_another_word_for_unknown_labels_is_refused():
    with pytest.raises(InputError, match="unknown_labels: expected 'error' or 'background', got 'ignore'"):
        load_scheme("freesurfer").to_indices(np.array([2]), "case", unknown_labels="ignore")


@pytest.mark.parametrize("value", [1.5, np.nan, np.inf])
def test_label_ids_that_are_not_integers_are_refused(value: float):
    with pytest.raises(InputError, match="case: expected integer label ids"):
        load_scheme("freesurfer").to_indices(np.array([2.0, value]), "case")


def test_unknown_ids_of_an_array_can_be_asked_for():
    assert load_scheme("freesurfer").unknown_ids(np.array([2, 999, 40000])) == [999, 40000]


def test_an_unknown_scheme_lists_those_there_are():
    with pytest.raises(InputError, match="'freesurfr': expected one of freesurfer, malc_all, neuromorphometrics"):
        load_scheme("freesurfr")


def test_all_faulty_rows_of_a_scheme_are_reported_at_once(tmp_path: Path):
    path = write_scheme(tmp_path, "2\ta\tcsf\nx\tb\tcsf\n2\tc\tcsf\n-3\td\tcsf\n5\te\tcerebrum\n")
    with pytest.raises(InputError, match=r"mine\.tsv: label scheme has rows to correct") as caught:
        load_scheme(path)
    text = str(caught.value)
    assert "line 3: expected a whole number from 0 to 2147483647 as id, got 'x'" in text
    assert "line 4: id 2 occurs twice" in text
    assert "line 5: expected a whole number from 0 to 2147483647 as id, got '-3'" in text
    assert "line 6: class 'cerebrum' is not in vocabulary 'structures'" in text


def test_a_scheme_without_its_columns_is_refused(tmp_path: Path):
    path = write_scheme(tmp_path, "")
    path.write_text("id,name,class\n2,a,csf\n")
    with pytest.raises(InputError, match="expected tab-separated columns id, name, class, got id,name,class"):
        load_scheme(path)


def test_a_scheme_that_is_not_text_is_refused(tmp_path: Path):
    path = write_scheme(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="expected a readable TSV"):
        load_scheme(path)


def test_a_scheme_without_a_sidecar_says_what_to_write(tmp_path: Path):
    path = write_scheme(tmp_path, "2\ta\tcsf\n")
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r'mine\.json: expected a JSON file with the key "vocabulary"'):
        load_scheme(path)


def test_a_scheme_of_an_unknown_vocabulary_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"mine\.json: expected as a vocabulary one of .*got 'strctures'"):
        load_scheme(write_scheme(tmp_path, "2\ta\tcsf\n", sidecar={"vocabulary": "strctures"}))


def test_vocabulary_indices_must_be_contiguous(tmp_path: Path):
    path = write_vocabulary(tmp_path, "0\tbackground\t\tbackground\t\n2\tgrey\t\tgm\t\n")
    with pytest.raises(InputError, match="line 3: expected index 1, got '2'"):
        load_vocabulary(path)


def test_all_faults_of_a_vocabulary_are_reported_at_once(tmp_path: Path):
    rows = "0\tgrey\t\tgm\t\n1\tgrey\tnobody\tgray\tup\n"
    with pytest.raises(InputError, match="'words' is not usable") as caught:
        load_vocabulary(write_vocabulary(tmp_path, rows))
    for part in ("'grey' occurs twice", "background at index 0", "parent 'nobody'", "got 'gray'", "got 'up'"):
        assert part in str(caught.value)


def test_parents_that_run_in_a_circle_are_refused(tmp_path: Path):
    rows = "0\tbackground\t\tbackground\t\n1\ta\tb\tgm\t\n2\tb\ta\tgm\t\n"
    with pytest.raises(InputError, match="class 'a': its line of parents runs in a circle"):
        load_vocabulary(write_vocabulary(tmp_path, rows))


def test_an_untrained_class_falls_back_to_its_nearest_trained_ancestor():
    vocabulary = small_vocabulary()
    np.testing.assert_array_equal(vocabulary.fallback_table([1, 2, 3, 4]), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(vocabulary.fallback_table([1, 2, 4]), [0, 1, 2, 2, 4])
    np.testing.assert_array_equal(vocabulary.fallback_table({4, 1}), [0, 1, 1, 1, 4])
    assert vocabulary.fallback_table([1, 4]).dtype == np.int64


def test_classes_without_any_trained_ancestor_are_named():
    with pytest.raises(InputError, match="got none for grey, deep_grey, left_nucleus"):
        small_vocabulary().fallback_table([4])


def test_choroid_plexus_is_painted_as_ventricle_where_no_one_labelled_it():
    vocabulary = load_vocabulary("structures")
    trained = set(range(25)) - {vocabulary.index("choroid_plexus")}
    assert vocabulary.fallback_table(trained)[vocabulary.index("choroid_plexus")] == vocabulary.index(
        "lateral_ventricle"
    )


def test_every_structure_falls_back_when_only_the_three_roots_were_trained():
    vocabulary = load_vocabulary("structures")
    roots = [vocabulary.index(name) for name in ("cerebral_white_matter", "cerebral_cortex", "csf")]
    assert set(vocabulary.fallback_table(roots)) == {0, *roots}


def test_a_vocabulary_survives_the_way_through_json():
    vocabulary = load_vocabulary("malc_all")
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "expected the key 'name', got none"),
        ({"name": "x", "classes": [{"nom": "y"}]}, r"expected the key 'classes\[0\].name', got none"),
        ({"name": "x", "classes": 3}, "expected a list under 'classes', got 3"),
    ],
)
def test_a_record_that_is_no_vocabulary_is_refused(record: dict, message: str):
    with pytest.raises(InputError, match=f"vocabulary record: {message}"):
        Vocabulary.from_dict(record)


def test_a_class_that_a_vocabulary_lacks_is_refused():
    with pytest.raises(InputError, match="class 'pons': expected a class of vocabulary 'small'"):
        small_vocabulary().index("pons")


def test_tissues_are_found_by_index():
    assert small_vocabulary().indices_of_tissue("gm") == (1, 2, 3)
    assert small_vocabulary().indices_of_tissue("csf") == ()


class TestRealData:
    pytestmark = needs_real_data

    @pytest.mark.parametrize(
        ("scheme", "pattern", "count"),
        [
            ("neuromorphometrics", "malc2012/*/*/anat/*_dseg.nii.gz", 28),
            ("malc_all", "malc2012/*/*/anat/*_dseg.nii.gz", 28),
            ("synthseg", "synthseg_labels/*.nii.gz", 10),
        ],
    )
    def test_every_id_of_the_real_label_maps_is_in_its_scheme(self, scheme: str, pattern: str, count: int):
        paths = sorted(DATA.glob(pattern))
        assert len(paths) == count
        unknown = {path.name: load_scheme(scheme).unknown_ids(np.asarray(nib.load(path).dataobj)) for path in paths}
        assert {name: ids for name, ids in unknown.items() if ids} == {}

    def test_malc_all_gives_every_id_its_own_class(self):
        table = [line.split("\t") for line in (DATA / "malc2012/dseg.tsv").read_text().splitlines()[1:]]
        scheme = load_scheme("malc_all")
        assert len({scheme.ids[int(row[0])] for row in table}) == len(table) == scheme.vocabulary.num_classes
