"""Check a packaged bundle before anything in it is unpacked, loaded or run.

    python -I verify_bundle.py FILE.zip [--sha256 HEX]

This file needs Python 3.10 and nothing else, so that whoever receives a bundle can read it and run it first. It
unpacks nothing, imports nothing from the zip, unpickles nothing. Exit code 0: nothing is wrong; 1: findings.

It cannot promise that the Python in the bundle is harmless: that is code, it will run, and it is listed as such, with
its digests. Nor does it judge which files a config reads and which folders it writes to. The hash says that the file is
the one whose hash you were given: take the hash from someone you trust, by another way than the file.

Configs are JSON and YAML is refused: JSON has no anchors, tags or styles, so that what is read here is what MONAI will
read. Files are stored uncompressed, so that nothing swells.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_FILE, LARGEST_RATIO, MOST_ENTRIES = 2 << 30, 20, 2000  # bytes; uncompressed over compressed; files in the zip
DIGESTS = "SHA256SUMS"

FOLDER = re.compile(r"trispade-[A-Za-z0-9._+-]+")  # no name that Python can import, so that it never hides a package
CODE = re.compile(r"trispade/.+\.(py|html|css)")  # page templates are programs too
WEIGHTS = re.compile(r"models/\w+\.pt")
LOGGING = "configs/logging.conf"  # Python evaluates what it says, so it must be trispade's own
LOGGING_SHA256 = "cbf3256db7320c55b0dddcdcd22ddb2acaa4c8b5ac38c94bcd176eea484cb74b"
KNOWN_FILES = re.compile(
    r"LICENSE|README\.md|SHA256SUMS|sbom\.cdx\.json|configs/(.+\.json|logging\.conf)|docs/.+\.(md|txt|png)"
    r"|models/\w+\.(pt|json)|trispade/.+\.(py|typed|html|css)|trispade/data_manifests/.+\.(json|tsv|md)"
)
ENTRY = b"PK\x03\x04"  # what each entry of a zip begins with
ARCHIVES = (ENTRY, b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")

# What a config may name. MONAI calls whatever `_target_` says and evaluates whatever begins with `$`.
TARGETS = {
    "": """Compose CopyItemsd LrScheduleHandler RandAdjustContrastd RandBiasFieldd RandGaussianNoised
        RandGaussianSmoothd RandScaleIntensityd SimpleInferer SlidingWindowInferer SupervisedEvaluator SupervisedTrainer
        ValidationHandler""",
    "torch.": """Generator nn.Identity nn.MSELoss optim.Adam optim.lr_scheduler.LambdaLR utils.data.DataLoader
        utils.data.DistributedSampler""",
    "trispade.data.": """EvaluationStore LabelPatchDataset PatchDataset SliceDataset StreamBatchSampler VolumeDataset
        generators_of open_cases open_painted_cases prepare_cases segmentation.SegmentationPatchDataset
        segmentation.SegmentationVolumeDataset slice_augmentation""",
    "trispade.engines.": """AutocastInferer AverageWeights BrainPSNR CaseDataset CaseEvaluator ClipGradients KeepBest
        Progress RecalibrateBeforeUse ReduceLosses ReportValidation SpadeTrainer StopAfter StopAtBadNumbers StopOnSignal
        TensorBoardTraining TrainingState WatchDiscriminator constant_then_linear describe_training first_of_batch
        fusion_architecture label_map_and_t1w planes_and_t1w start_from style.WithDrawnStyles
        style.generator_architecture style.make_style_encoder style.trainable_parameters wrap""",
    "trispade.inference.": """DirectInferer PlaneInferer PlaneSynthesis TriplanarInferer describe_model
        downstream_arms.open_arm export_direct export_model leave_finished_out list_label_maps list_pairs load_model
        open_direct open_realism results_file.ResultsFile volume_synthesis.VolumeSynthesis""",
    "trispade.losses.": """CellDiceCELoss DiscriminatorHingeLoss FeatureMatchingLoss GeneratorHingeLoss StyleDivergence
        TextureLoss perceptual_loss""",
    "trispade.networks.": """DirectUNet FusionNet HalfResolutionUNet SpadeDiscriminator SpadeGenerator
        TriplanarSynthesizer""",
    "trispade.report.": "Evaluation StoreMethods downstream.DownstreamEvaluation what_made_them",
    "trispade.transforms.": """CorrectBiasd FillBraind FromWorkingGridd LoadLabelMapd LoadT1wd MapLabelsd
        MaskBackgroundd SaveSyntheticd ScaleIntensityd ToWorkingGridd""",
    "trispade.": "labels.load_scheme manifests.read_manifest",
}
KNOWN_TARGETS = {prefix + name for prefix, names in TARGETS.items() for name in names.split()}

# What `$` may say: these forms. They name parts of the config, and call nothing but what the targets above have made.
PART = r"@[A-Za-z]\w*(#\w+)*"
JOINED = rf"({PART}|'[\w/. -]*'|\[{PART}(, {PART})*\])"
READ = """average cases label_scheme merges_sides model name network num_cases num_classes sources test test_keys
    vocabulary"""  # attributes: none is a function or a module of Python
EXPRESSIONS = (
    r"import (torch|monai)",
    r"import ignite\.distributed as idist",
    r"from trispade\.distributed import (join_ranks|leave_ranks)",
    r"(join_ranks\(@timeout_minutes, @backend\)|leave_ranks\(\))",
    r"idist\.(device|get_rank|get_world_size)\(\)",
    r"from trispade\.errors import (exit_on_sigterm|show_input_errors_as_one_line)",
    r"(exit_on_sigterm|show_input_errors_as_one_line)\(\)",
    r"monai\.utils\.set_determinism\(seed=@seed\)",
    r"torch\.device\('cuda' if torch\.cuda\.is_available\(\) else 'cpu'\)",
    rf"{JOINED}( \+ {JOINED})+",  # paths and lists
    rf"{PART}(\.({'|'.join(READ.split())}))+",
    rf"{PART}(\.(run|parameters))?\(\)",
    rf"@wrap\({PART}\)",
    rf"{PART}\.to\(@device(, memory_format=torch\.channels_last_3d)?\)",
    rf"(len|@store\.unfinished)\({PART}\)",
)
KNOWN_EXPRESSION = re.compile(rf"\$({'|'.join(EXPRESSIONS)})", re.ASCII)
MODES = ("default", "callable")

# What weights may name: what a plain state dict of tensors needs. Any other global could be code.
STORAGES = "Float Half BFloat16 Double Long Int Short Char Byte Bool"
KNOWN_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
KNOWN_GLOBALS |= {f"torch {kind}Storage" for kind in STORAGES.split()}
SEAL = b"\ntrispade sha256 "  # what trispade writes behind weights, and then their hash
KNOWN_OPCODE = re.compile(
    "PROTO|STOP|MARK|GLOBAL|REDUCE|BINPERSID|(LONG_)?BIN(PUT|GET)|EMPTY_(DICT|LIST|TUPLE)|TUPLE[123]?|SETITEMS?|APPENDS?"
    "|NONE|NEW(TRUE|FALSE)|BININT[12]?|LONG1|BINFLOAT|BINUNICODE"
)
WEIGHTS_PART = re.compile(
    r"\w+/(data\.pkl|data/\d+|version|byteorder|\.(format_version|storage_alignment|data/serialization_id))"
)

Contents = dict[str, bytes]


class Report:
    """What was found: one line a finding, and in `lines` what the bundle holds, for whoever reads it."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.lines: list[str] = []

    def refuse(self, where: str, why: str) -> None:
        """Note a finding."""
        self.findings.append(f"{_shown(where)}: {why}")

    def text(self) -> str:
        """What to print: what the bundle holds, the findings, and the verdict."""
        verdict = "nothing that should not be there; the code listed above runs when the bundle is used"
        if self.findings:
            verdict = f"{len(self.findings)} findings: do not unpack it, and ask the sender"
        return "\n".join([*self.lines, "", *(f"REFUSED {each}" for each in self.findings), verdict])


def verify(file: str | Path, sha256: str | None = None) -> Report:
    """Check a packaged bundle.

    Args:
        file: the zip.
        sha256: digest that it must have, hexadecimal; if None, the one in ``FILE.zip.sha256`` beside it.

    Returns:
        The findings, none if all is well, and the lines to print.
    """
    report, path = Report(), Path(file)
    data = _read(path, report)
    if data is None:
        return report
    _check_hash(path, data, sha256, report)
    contents = _open_archive(path.name, data, report)
    if contents is None:
        return report
    bundle = _inside_the_folder(contents, report)
    _check_kinds(bundle, report)
    _check_digests(bundle, report)
    _check_configs(bundle, report)
    for name in sorted(name for name in bundle if WEIGHTS.fullmatch(name)):
        _check_weights(name, bundle[name], report)
    _list_code(bundle, report)
    return report


def _read(path: Path, report: Report) -> bytes | None:
    try:
        if path.stat().st_size > LARGEST_FILE:
            report.refuse(path.name, f"is larger than the {LARGEST_FILE} bytes that are read")
            return None
        return path.read_bytes()
    except OSError as error:
        report.refuse(str(path), f"cannot be read ({error.strerror})")
        return None


def _check_hash(path: Path, data: bytes, wanted: str | None, report: Report) -> None:
    found, origin = hashlib.sha256(data).hexdigest(), "--sha256"
    report.lines += [f"{_shown(path.name)}: {len(data)} bytes", f"SHA-256 {found}"]
    if wanted is None:
        origin = f"{path.name}.sha256"
        try:
            wanted, name = path.with_name(origin).read_text(encoding="ascii").split()
        except (OSError, ValueError):
            report.refuse(path.name, f"no SHA-256 to compare with: give --sha256, or put {origin} beside it")
            return
        if name.removeprefix("*") != path.name:
            report.refuse(origin, f"holds the hash of another file, {_shown(name)}")
    if wanted.strip().lower() != found:
        report.refuse(path.name, f"is not the file that was sent: {origin} says {_shown(wanted)}, it has {found}")


def _open_archive(name: str, data: bytes, report: Report, weights: bool = False) -> Contents | None:
    """Read a zip's entries, or None after a finding that leaves in doubt what they are."""
    num_findings = len(report.findings)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries, start = archive.infolist(), archive.start_dir
    except Exception as error:  # a hostile file may bring zipfile to raise anything
        report.refuse(name, f"cannot be read as a zip ({type(error).__name__})")
        return None
    if len(entries) > MOST_ENTRIES:
        report.refuse(name, f"holds {len(entries)} entries, more than {MOST_ENTRIES}")
        return None
    seen: set[str] = set()
    for entry in entries:
        where = f"{name}: {entry.orig_filename}" if weights else entry.orig_filename
        for problem in _entry_problems(entry, seen):
            report.refuse(where, problem)
    if len(report.findings) > num_findings:
        return None
    try:
        return _stored_contents(data, entries, start, weights)
    except (ValueError, struct.error) as error:
        report.refuse(name, f"is not laid out as one plain zip: {error}")
        return None


def _entry_problems(entry: zipfile.ZipInfo, seen: set[str]) -> Iterator[str]:
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        yield "an absolute path, which would be written outside the folder"
    if ".." in re.split(r"[/\\]", name):
        yield "a path with '..', which could be written outside the folder"
    if "\\" in name:
        yield "a path with a backslash, which means another path on Windows"
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", name, re.ASCII) or re.search(r"\.(/|$)", name):
        yield "a name that is no plain path of a file"
    if kind == stat.S_IFLNK:
        yield "a symbolic link"
    elif kind not in (0, stat.S_IFREG):
        yield "a special file"
    if entry.flag_bits & 0x2041:
        yield "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED:
        ratio = entry.file_size / max(entry.compress_size, 1)
        swells = f", and would swell to {ratio:.0f} times its size" if ratio > LARGEST_RATIO else ""
        yield f"is compressed, where a bundle's files are stored as they are{swells}"
    folded = name.casefold()
    if folded in seen:
        yield "occurs twice (capitals do not count)"
    seen.add(folded)


def _stored_contents(data: bytes, entries: list[zipfile.ZipInfo], start: int, weights: bool) -> Contents:
    """Cut the entries out of a zip whose every byte is accounted for, so that no two programs read it differently.

    Entries follow one another from the first byte to the directory, local headers agree with the directory, and the end
    record is the file's end. Weights are as torch writes them: padded, with a data descriptor behind each entry.
    """
    _check_end(data, start, len(entries))
    contents, position = {}, 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        name, at = entry.orig_filename, entry.header_offset
        header = struct.unpack("<4s5H3I2H", data[at : at + 30])
        begin = at + 30 + header[9] + header[10]
        content = data[begin : begin + entry.file_size]
        told = (entry.flag_bits, entry.compress_type, entry.CRC, entry.file_size, entry.file_size)
        found = (header[2], header[3], *(told[2:] if weights else header[6:9]))
        extra = not weights and (header[10] or entry.extra)
        if not 0 <= at - position <= (24 if weights and position else 0):
            raise ValueError(f"there are bytes before {_shown(name)} that belong to no entry, or to two")
        if header[0] != ENTRY or data[at + 30 : at + 30 + header[9]] != name.encode() or found != told or extra:
            raise ValueError(f"the header of {_shown(name)} is not what the directory says")
        if (len(content), entry.compress_size, zlib.crc32(content)) != (entry.file_size, entry.file_size, entry.CRC):
            raise ValueError(f"{_shown(name)} does not have the size and checksum that the directory says")
        contents[name], position = content, begin + entry.file_size
    if not 0 <= start - position <= (24 if weights else 0):
        raise ValueError("there are bytes before its directory that belong to no entry")
    return contents


def _check_end(data: bytes, start: int, num_entries: int) -> None:
    """Check that the end record, of either format, is the file's end and names the directory that was read."""
    end = len(data) - 22
    fields = struct.unpack("<4s4H2IH", data[max(end, 0) :])
    size, offset, count, at = fields[5], fields[6], fields[4], end
    if data[max(end - 20, 0) : end].startswith(b"PK\x06\x07"):
        at = end - 76
        locator = struct.unpack("<4sIQI", data[end - 20 : end])
        large = struct.unpack("<4sQ2H2I4Q", data[at : end - 20])
        if large[0] != b"PK\x06\x06" or locator[2] != at:
            raise ValueError("its large end record is not at its end")
        small, (count, size, offset) = (count, size, offset), large[7:10]
        if any(a not in (b, 0xFFFF, 0xFFFFFFFF) for a, b in zip(small, large[7:10], strict=True)):
            raise ValueError("its two end records disagree")
    if fields[0] != b"PK\x05\x06" or fields[7] != 0:
        raise ValueError("something follows its end record")
    if (count, offset, offset + size) != (num_entries, start, at):
        raise ValueError("its end record names another directory")


def _inside_the_folder(contents: Contents, report: Report) -> Contents:
    """Contents by their path in the bundle's one folder."""
    folders = {name.partition("/")[0] for name in contents}
    if len(folders) != 1 or not FOLDER.fullmatch(next(iter(folders))):
        report.refuse(", ".join(sorted(folders)), "expected one folder, named trispade-<version>")
    return {name.partition("/")[2]: content for name, content in contents.items()}


def _check_kinds(bundle: Contents, report: Report) -> None:
    for name, content in bundle.items():
        if re.search(r"\.ya?ml$", name, re.IGNORECASE):
            report.refuse(name, "YAML, which MONAI would read; the configs of a packaged bundle are JSON")
        elif not KNOWN_FILES.fullmatch(name):
            report.refuse(name, "a file of a kind, or in a place, that a packaged bundle does not have")
        if WEIGHTS.fullmatch(name):
            continue
        if content.startswith(ARCHIVES):
            report.refuse(name, "an archive inside the archive")
        elif not name.endswith(".png") and re.search(rb"[\x00-\x08\x0e-\x1f]", content):
            report.refuse(name, "expected text, got binary content")


def _check_digests(bundle: Contents, report: Report) -> None:
    """Compare each file with the list of digests that the package carries."""
    listed: dict[str, str] = {}
    for line in bundle.get(DIGESTS, b"").decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name in sorted((listed.keys() | bundle.keys()) - {DIGESTS}):
        told = listed.get(name)
        if told != (hashlib.sha256(bundle[name]).hexdigest() if name in bundle else None):
            report.refuse(name, f"was changed, added or taken away: {DIGESTS} has {_shown(told or 'no line')}")


def _check_configs(bundle: Contents, report: Report) -> None:
    """Check all JSON, for MONAI takes any file of that ending as a config, and the settings of logging."""
    targets: set[str] = set()
    expressions: set[str] = set()
    for name in sorted(bundle):
        if name.lower().endswith(".json"):
            _check_json(name, bundle[name], targets, expressions, report)
    report.lines += [f"configs call {len(targets)} targets:", *_shown_list(targets)]
    report.lines += [f"and evaluate {len(expressions)} expressions:", *_shown_list(expressions)]
    if LOGGING in bundle and hashlib.sha256(bundle[LOGGING]).hexdigest() != LOGGING_SHA256:
        report.refuse(LOGGING, "other settings than trispade's own, and Python evaluates what such a file says")


def _check_json(name: str, content: bytes, targets: set[str], expressions: set[str], report: Report) -> None:
    try:
        # MONAI reads it in whatever encoding the machine has: only ASCII is the same everywhere.
        config = json.loads(content.decode("ascii"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        report.refuse(name, f"expected JSON in ASCII, each key once, got {type(error).__name__}: {_shown(str(error))}")
        return
    for place, key, value in _items(config):
        if "_target_" in key:  # also in keys such as "network::_target_", which MONAI takes apart
            targets.add(str(value))
            if not isinstance(value, str) or value not in KNOWN_TARGETS:
                report.refuse(name, f"target {_shown(str(value))} at {_shown(place)} is not on the list")
            continue
        if ("_mode_" in key and value not in MODES) or "_debug_" in key:
            report.refuse(name, f"{_shown(key)}: {_shown(str(value))} at {_shown(place)} is not on the list")
        if isinstance(value, str) and value.startswith("$"):
            expressions.add(value)
            if not KNOWN_EXPRESSION.fullmatch(value):
                report.refuse(name, f"expression {_shown(value)} at {_shown(place)} is not on the list")
        if isinstance(value, str) and value.startswith("%"):
            report.refuse(name, f"macro {_shown(value)} at {_shown(place)} would read in another file")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) > len(set(keys)):
        raise ValueError(f"a key twice among {keys}")
    return dict(pairs)


def _items(config: Any) -> Iterator[tuple[str, str, Any]]:
    """Walk through a config; place, last key and value of everything in it."""
    waiting = [("", "", config)]
    while waiting:
        place, key, value = waiting.pop()
        yield place, key, value
        if isinstance(value, dict):
            waiting += [(f"{place}#{each}".lstrip("#"), each, value[each]) for each in value]
        elif isinstance(value, list):
            waiting += [(f"{place}#{i}".lstrip("#"), "", each) for i, each in enumerate(value)]


def _check_weights(name: str, content: bytes, report: Report) -> None:
    """Scan what ``torch.load`` would unpickle; nothing is loaded."""
    if not content.startswith(ENTRY):
        report.refuse(name, "weights of the old format, a bare pickle")
        return
    before, seal, digest = content.rpartition(SEAL)
    sealed = seal and digest.decode("ascii", "replace") == hashlib.sha256(before).hexdigest()
    parts = _open_archive(name, before if sealed else content, report, weights=True)
    if parts is None:
        return
    for part in sorted(parts):
        if not WEIGHTS_PART.fullmatch(part):
            report.refuse(name, f"{_shown(part)} is no part of a plain state dict")
    pickles = [part for part in parts if part.endswith("/data.pkl")]
    if len(pickles) != 1 or len({part.partition("/")[0] for part in parts}) != 1:
        report.refuse(name, f"expected one data.pkl in one folder, got {len(pickles)}")
        return
    named = _scan_pickle(name, parts[pickles[0]], report)
    report.lines += [f"{name}: {len(content)} bytes; its pickle names", *_shown_list(named)]


def _scan_pickle(name: str, content: bytes, report: Report) -> set[str]:
    named, odd, end = set(), set(), 0
    try:
        for opcode, argument, position in pickletools.genops(content):
            end = position or 0
            if opcode.name == "GLOBAL":
                named.add(str(argument))
            elif not KNOWN_OPCODE.fullmatch(opcode.name):
                odd.add(opcode.name)
    except Exception as error:  # hostile bytes may bring pickletools to raise anything
        report.refuse(name, f"its pickle cannot be read ({type(error).__name__})")
    if end + 1 != len(content):
        report.refuse(name, "something follows the end of its pickle")
    for each in sorted(odd):
        report.refuse(name, f"its pickle holds {each}, which a plain state dict does not need")
    for each in sorted(named - KNOWN_GLOBALS):
        report.refuse(name, f"its pickle would call {_shown(each.replace(' ', '.'))}, which is not on the list")
    return named


def _list_code(bundle: Contents, report: Report) -> None:
    code = {name: content for name, content in sorted(bundle.items()) if CODE.fullmatch(name)}
    size = sum(map(len, code.values()))
    report.lines.append(f"Code that will run, Python and page templates: {len(code)} files, {size} bytes")
    report.lines += [f"  {hashlib.sha256(code[name]).hexdigest()} {len(code[name]):7d}  {name}" for name in code]


def _shown(text: str) -> str:
    """Text of unknown origin for a terminal: ASCII, no control characters, not too long."""
    plain = text.encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= 200 else f"{plain[:200]}..."


def _shown_list(names: set[str]) -> list[str]:
    return [f"  {_shown(each)}" for each in sorted(names)]


def main(arguments: list[str] | None = None) -> int:
    """Check the file that the command line names; gives the exit code."""
    parser = argparse.ArgumentParser(description="Check a packaged bundle before anything in it is unpacked or run.")
    parser.add_argument("file", help="the zip")
    parser.add_argument("--sha256", help="digest that it must have [default: what FILE.zip.sha256 beside it says]")
    given = parser.parse_args(arguments)
    report = verify(given.file, given.sha256)
    print(report.text())
    return 1 if report.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
