"""Configs with anything in them, and any values of plain settings: what they describe can be built, or one clear line.

MONAI's configs are code. What is drawn here is their text, of which nothing is run, and plain values, which must not
become code.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from examples import HOSTILE, assert_clear_lines, bounded, few_or_many, for_each, spoilt_texts
from hypothesis import strategies as st

from trispade.bundle_run import build_components
from trispade.cli import main
from trispade.configs import LARGEST_CONFIG, read_configs
from trispade.errors import InputError
from trispade.settings import SETTINGS

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
PRESETS = ("smoke", "compact", "paper")
BUILT = {
    "inference": ("network_def", "inferer"),
    "train_spade": ("generator", "discriminator", "architecture", "schedule"),
    "train_fusion": ("fusion_net", "fusion_architecture"),
    "train_direct": ("direct_net",),
    "evaluate_downstream": ("segmentation",),
}
RUN = ("initialize", "run", "finalize")
OWN_FILES = [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("presets/*.yaml"), *CONFIGS.glob("overlays/*.yaml")]
PIECES = ["&a ", "*a", "<<: ", "? ", "- ", ": ", "{", "[", "}", "]", "!!binary ", "!!timestamp x", "!!int x", "!!set "]
PIECES += [
    "!!python/object/apply:os.getcwd []",
    "%YAML 9.9",
    "---\n",
    "...\n",
    "\t",
    "'",
    '"',
    '"\\UFFFFFFFF"',
    "|\n",
    ">\n",
]
PIECES += [
    "@missing",
    "@ngf",
    "'@run'",
    "'%network_def'",
    "'%'",
    "$",
    "#",
    "1: 2\n",
    "run: 1\n",
    "ngf: 4\n",
    "+ngf: [1]\n",
]
PIECES += [
    "network: '@network'\n",
    "a#b: 1\n",
    "inferer#amp: 1\n",
    "[" * 40,
    "- " * 40,
    "\0",
    "\x85",
    "\ud800",
    "9" * 5000,
]


def plain_settings_of(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: value
        for name, value in content.items()
        if not isinstance(value, dict) and not (isinstance(value, str) and value[:1] in ("$", "@"))
    }


def test_every_plain_setting_of_the_bundle_stands_in_the_table_and_is_of_its_kind() -> None:
    lists_of_code = {"imports", "initialize", "run", "finalize", "+imports", "+initialize", "validate#handlers"}
    own = [plain_settings_of(file) for file in OWN_FILES]
    assert {name for settings in own for name in settings} - lists_of_code - set(SETTINGS) == set()
    assert [
        name for each in own for name, value in each.items() if name in SETTINGS and not SETTINGS[name].fits(value)
    ] == []


@st.composite
def spoilt_yaml(draw: st.DrawFn) -> bytes:
    """A config's text with lines that are gone, there twice or elsewhere, and with pieces of YAML put in."""
    lines = draw(st.sampled_from(OWN_TEXTS)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["piece", "piece", "cut", "gone", "elsewhere"])):
            case "piece":
                column = draw(st.integers(0, len(lines[place])))
                lines[place] = lines[place][:column] + draw(st.sampled_from(PIECES)) + lines[place][column:]
            case "cut":
                lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))] + "\n"
            case "gone":
                lines[place] = "\n"
            case "elsewhere":
                lines.insert(place, draw(st.sampled_from(lines)))
    return draw(spoilt_texts(st.just("".join(lines))))


OWN_TEXTS = [(CONFIGS / name).read_text() for name in ("inference.yaml", "prepare.yaml", "presets/smoke.yaml")]


@few_or_many(60, 2000)
def test_whatever_the_text_of_a_config_is_it_is_read_or_one_clear_line(tmp_path: Path, num_examples: int) -> None:
    path = tmp_path / "spoilt.yaml"

    def check(text: bytes) -> None:
        path.write_bytes(text)
        for files in ([CONFIGS / "inference.yaml", path], [path]):
            try:
                with bounded():
                    read_configs(files, {}, RUN)
            except InputError as error:
                assert_clear_lines(error, *files, *SETTINGS)

    for_each(num_examples, check, spoilt_yaml())


def harmless(value: Any) -> Any:
    """Take the signs of code from the beginnings of all text in a value."""
    if isinstance(value, str):
        return value.lstrip("$@%")
    if isinstance(value, list):
        return [harmless(each) for each in value]
    return {harmless(key): harmless(each) for key, each in value.items()} if isinstance(value, dict) else value


WORDS = [
    "none",
    "batch",
    "axial",
    "fidelity",
    "freesurfer",
    "many",
    "oblique",
    "val",
    "1",
    "1.0",
    "nan",
    "null",
    "true",
]
NEAR = st.one_of(
    st.sampled_from([0, -3, 1, 2, 3, 4, 8, 32, 64, 1024, 0.5, 1.0, 4.0, -0.0, 1e-12, float("nan"), True, None, *WORDS]),
    st.lists(st.sampled_from([0, 1, 3, 4, 8, 32, 64, 2.5, -1, "val", "test", None]), max_size=6),
)
VALUES = st.one_of(NEAR, HOSTILE).map(harmless)
NOT_DRAWN = {"bundle_root", "preset"}
DRAWN = [
    (stage, preset, sorted(plain_settings_of(CONFIGS / f"{stage}.yaml").keys() & set(SETTINGS) - NOT_DRAWN))
    for stage in BUILT
    for preset in PRESETS
]
EXAMPLES = st.sampled_from(DRAWN).flatmap(
    lambda drawn: st.tuples(
        st.just(drawn[0]),
        st.sampled_from([drawn[1], None]),
        st.dictionaries(st.sampled_from(drawn[2]), VALUES, min_size=1, max_size=3),
    )
)


@few_or_many(40, 2000)
def test_whatever_values_the_settings_have_what_they_describe_is_built_or_one_clear_line(num_examples: int) -> None:
    def check(example: tuple[str, str | None, dict[str, Any]]) -> None:
        stage, preset, values = example
        try:
            with bounded(), torch.device("meta"):
                build_components(BUNDLE, stage, BUILT[stage], preset, **values)
        except InputError as error:
            assert_clear_lines(error, "")

    for_each(num_examples, check, EXAMPLES)


BAD_PRESETS = {
    "width_in_words": ("ngf: many", r"ngf: expected a whole number from 1 to 256, got 'many'\. Correct the setting"),
    "no_slices": ("slice_batch_size: 0", r"slice_batch_size: expected a whole number from 1 to 4096, got 0"),
    "fewer_slices": ("slice_batch_size: -3", r"slice_batch_size: expected a whole number from 1 to 4096, got -3"),
    "nan_slices": ("slice_batch_size: .nan", r"slice_batch_size: expected a whole number from 1 to 4096, got nan"),
    "true_slices": ("slice_batch_size: true", r"slice_batch_size: expected a whole number from 1 to 4096, got True"),
    "two_faults": ("ngf: []\nhidden: x", r"inference.yaml: 2 settings to correct:\n  - ngf: .*\n  - hidden: expected"),
    "missing": ("hidden: '@hiden'", r"inference.yaml: expected 'hiden', to which 'hidden' refers, got none"),
    "circle": ("hidden: '@ngf'\nngf: '@hidden'", r"expected references that end, got '@(ngf|hidden)', which refers to"),
    "macro": ("ngf: '%hidden'", r"expected a config without macros, got '%hidden'\. Write it out"),
    "bomb": (
        "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",
        r"bad.yaml: expected a config without anchors and aliases, got",
    ),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, r"bad.yaml: expected a config, got values nested over 32 deep"),
    "deep_blocks": ("- " * 5000, r"bad.yaml: expected a config, got values nested over 32 deep"),
    "large": ("#" * (LARGEST_CONFIG + 1), rf"bad.yaml: expected a config of at most {LARGEST_CONFIG} bytes, got more"),
    "no_yaml": ("a: b: c", r"bad.yaml: expected YAML, got mapping values are not allowed here at line 1, column 5"),
    "tag": ("a: !!python/object/apply:os.getcwd []", r"bad.yaml: expected YAML, got could not determine a constructor"),
    "twice": ("ngf: 4\nngf: 5", r"bad.yaml: expected a config, got 'Duplicate key"),
    "list": ("- 1", r"bad.yaml: expected settings by name, got list"),
    "number_as_key": ("1: 2", r"bad.yaml: expected a config, got '"),
    "control": ("a: \x07", r"bad.yaml: expected a config, got '.*special characters are not allowed"),
    "chain": (
        "\n".join(f"x{i}: '@x{i + 1}'" for i in range(99)) + "\nx99: 1\nngf: '@x0'",
        r"references at most 64 in a",
    ),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(CONFIGS, tmp_path / "bundle" / "configs")
    handlers = list(logging.root.handlers)
    yield tmp_path / "bundle"
    logging.root.handlers[:] = handlers


@pytest.fixture
def error_of(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with the preset ``bad``; give what it says, in full, of what is wrong."""

    def run(*arguments: object) -> str:
        labels = BUNDLE.parent / "pipeline" / "trispade" / "anatomies" / "anatomy-1_dseg.nii.gz"
        command = ["trispade", "synthesize", labels, "-o", tmp_path / "out", "--bundle", bundle, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit, match=r"^1$"), bounded():
            main()
        assert not (tmp_path / "out").exists()
        first, said = capsys.readouterr().err.split("\n", 1)
        assert first.startswith("bundle: ")
        assert "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize("name", BAD_PRESETS)
def test_a_bad_preset_ends_the_command_in_clear_lines_and_exit_code_1(bundle: Path, error_of: Any, name: str) -> None:
    text, message = BAD_PRESETS[name]
    (bundle / "configs" / "presets" / "bad.yaml").write_text(text)
    said = error_of("--preset", "bad")
    with pytest.raises(InputError, match=message) as caught:
        raise InputError(said.removeprefix("trispade: ").removesuffix("\n"))
    assert_clear_lines(caught.value, "")


def test_what_is_no_text_ends_the_command_in_one_clear_line(bundle: Path, error_of: Any) -> None:
    (bundle / "configs" / "presets" / "bad.yaml").write_bytes("spacing_mm: 1\n# \u00e9".encode("latin-1"))
    assert "bad.yaml: expected a config, got text that is not UTF-8, at byte 16. Correct the file.\n" in error_of(
        "--preset", "bad"
    )
    (bundle / "configs" / "metadata.json").write_text("[" * 100_000)
    assert "metadata.json: expected the metadata of a bundle, got" in error_of("--preset", "smoke")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fusion", "../model"], "fusion: expected a name of letters, digits"),
        (["--fusion", "x" * 5000], "fusion: expected a name of letters, digits"),
        (["--scheme", "a/" * 5000], "label_scheme: expected a path or null, got 'a/"),
        (["--scheme", "$1/0"], "label_scheme: expected a plain value, got '$1/0', code in a config. Put ./ before"),
        (["--preset", "a" * 5000], "presets: expected one of compact, paper, smoke, got 'aaa"),
        (["--preset", "../overlays/realism"], "presets: expected one of compact, paper, smoke, got '../overlays/re"),
        (["--model", "x" * 300], "model_file: expected a path, got 'xxx"),
    ],
)
def test_a_bad_option_ends_the_command_in_one_clear_line(error_of: Any, arguments: list[str], message: str) -> None:
    said = error_of(*arguments)
    assert said.startswith("trispade: ")
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 3000
