"""The bundle as one zip: all that runs it beside MONAI and its companions, the same bytes for the same files.

trispade-<version>/        LICENSE, README.md (how to run it), SHA256SUMS, sbom.cdx.json
    configs/               the stages and presets, as JSON
    docs/                  model card, terms of the data
    models/                model.pt, fusion_<name>.pt of each other fusion net, model.json
    trispade/              the package's source, which ``python -m monai.bundle`` imports from the folder it runs in
        data_manifests/    label schemes and manifests, as in a wheel
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import trispade
from trispade.errors import InputError
from trispade.inference.fusion_choice import fusion_file
from trispade.labels import data_manifests_folder
from trispade.nifti import replacing
from trispade.sharing.verify_bundle import DIGESTS, WEIGHTS, verify

MODEL = "models/model.pt"
RECORD = "models/model.json"
OWN_PRESET = "compact"  # the stages' own values are those of this preset
SOURCE_KINDS = (".py", ".typed", ".html", ".css")
MANIFEST_KINDS = (".json", ".tsv", ".md")
DOC_KINDS = (".md", ".txt", ".png")
EARLIEST_TIME = (1980, 1, 1, 0, 0, 0)  # that a zip can hold; the real one would make each zip another
PLAIN_FILE = 0o100644 << 16
UNIX = 3

Files = dict[str, bytes]

README = """# trispade {version}

Anatomical label map in, synthetic T1w brain MRI out. `docs/README.md` is the model card, `LICENSE` and
`docs/data_license.txt` are the terms, `sbom.cdx.json` names what it needs. For research; not for diagnosis.

What it needs (these versions it was tested with) and how it is run, from inside this folder, where Python finds the
`trispade` package that travels with it:

    python -m pip install {requirements}
    python -m monai.bundle run --config_file {config} --input /path/to/aparc+aseg.mgz --output_dir out

From anywhere else, put this folder on `PYTHONPATH` and give it as `--bundle_root`, with the paths of the configs.
"""


def package_bundle(bundle: str | Path, output: str | Path, without_weights: bool = False) -> str:
    """Write a bundle as one zip, and its SHA-256 in ``<output>.sha256`` beside it.

    Args:
        bundle: the bundle's root.
        output: the zip.
        without_weights: leave the weights out, or do without them.

    Returns:
        The zip's SHA-256, hexadecimal.

    Raises:
        InputError: if the weights, the licence, the model card or the extra ``sharing`` are missing, if a config is one
            that JSON cannot hold, or if the zip holds something that `verify` refuses.
    """
    bundle, output = Path(bundle), Path(output)
    if output.suffix != ".zip":
        raise InputError.of(output, "a name that ends in .zip", output.name, "Change the name of the output.")
    metadata = _read_metadata(bundle / "configs" / "metadata.json")
    files, record = _bundle_files(bundle) | _source_files(), {}
    if not without_weights:
        remedy = "Train the networks, or say --without-weights."
        record = _read_json(bundle / RECORD, remedy)
        fusions = [fusion_file(MODEL, name).as_posix() for name in record.get("fusions", {})]
        files |= {name: _read(bundle / name, remedy) for name in (MODEL, RECORD, *fusions)}
    files["README.md"] = _readme(metadata, record).encode()
    files["sbom.cdx.json"] = _bill_of_materials(metadata, files)
    files[DIGESTS] = "".join(f"{_sha256(files[name])}  {name}\n" for name in sorted(files)).encode()
    with replacing(output) as partial_output:
        _write_zip(partial_output, f"trispade-{metadata['version']}", files)
        sha256 = _sha256(partial_output.read_bytes())
        findings = verify(partial_output, sha256).findings
        if findings:
            raise InputError.of_many(f"{bundle}: holds what `trispade verify` refuses:", findings)
    with replacing(output.with_name(f"{output.name}.sha256")) as partial_digest:
        partial_digest.write_text(f"{sha256}  {output.name}\n", encoding="ascii", newline="\n")
    return sha256


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata = _read_json(path, "Name the root folder of a bundle.")
    version = str(metadata.get("version", ""))
    if not re.fullmatch(r"[0-9][A-Za-z0-9._+-]*", version):
        raise InputError.of(path, "a version such as 1.0.0", repr(version), "Correct it.")
    return metadata


def _bundle_files(bundle: Path) -> Files:
    """Files of a bundle by their path in it: what belongs to one, and nothing else that lies in its folder."""
    files = {"LICENSE": _read(bundle / "LICENSE", "Give the bundle its licence.")}
    files["docs/README.md"] = _read(bundle / "docs" / "README.md", "Give the bundle its model card.")
    for path in _below(bundle / "docs", DOC_KINDS):
        files[path.relative_to(bundle).as_posix()] = path.read_bytes()
    for path in _below(bundle / "configs", (".yaml", ".yml", ".json")):
        name = path.relative_to(bundle).with_suffix(".json").as_posix()
        if name in files:
            raise InputError.of(path, "one config of a name", "JSON and YAML of the same", "Remove one of them.")
        files[name] = _config_as_json(path)
    files["docs/README.md"] = files["docs/README.md"].replace(b".yaml", b".json")
    logging_settings = bundle / "configs" / "logging.conf"
    if logging_settings.is_file():
        files["configs/logging.conf"] = logging_settings.read_bytes()
    return files


def _source_files() -> Files:
    """The package that runs, and the data that a wheel carries, by their path in the bundle."""
    package, manifests = Path(trispade.__file__).parent, data_manifests_folder()
    source = [path for path in _below(package, SOURCE_KINDS) if not path.is_relative_to(manifests)]
    files = {f"trispade/{path.relative_to(package).as_posix()}": path.read_bytes() for path in source}
    for path in _below(manifests, MANIFEST_KINDS):
        files[f"trispade/data_manifests/{path.relative_to(manifests).as_posix()}"] = path.read_bytes()
    return files


def _below(folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in kinds)
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _config_as_json(path: Path) -> bytes:
    """A config as ASCII JSON, which every machine reads alike and `verify` can check without a YAML parser."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        text = json.dumps(config, indent=2)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError.of(path, "a config that JSON can hold", f"'{error}'", "Correct it.") from error
    if json.loads(text) != config:
        raise InputError.of(path, "a config that JSON can hold", "keys that are no text", "Put them in quotes.")
    return f"{text}\n".encode("ascii")


def _readme(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    preset = record.get("training", {}).get("fusion", {}).get("preset") or OWN_PRESET
    config = "configs/inference.json"
    if preset != OWN_PRESET:
        config = f"\"['{config}','configs/presets/{preset}.json']\""
    requirements = " ".join(f"{name}=={version}" for name, version in required_packages(metadata).items())
    return README.format(version=metadata["version"], requirements=requirements, config=config)


def required_packages(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Packages that the bundle was tested with, by their name in the package index, from its metadata."""
    own = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}
    return {
        **{name: str(metadata[key]) for name, key in own.items() if key in metadata},
        **metadata.get("required_packages_version", {}),
    }


def _bill_of_materials(metadata: Mapping[str, Any], files: Files) -> bytes:
    try:
        from trispade.sharing.sbom import bill_of_materials
    except ModuleNotFoundError as error:
        remedy = 'Install it: pip install "trispade[sharing]".'
        raise InputError.of("trispade package", "the extra 'sharing'", f"no module {error.name}", remedy) from error
    weights = {name: _sha256(files[name]) for name in sorted(files) if WEIGHTS.fullmatch(name)}
    return bill_of_materials(str(metadata["version"]), required_packages(metadata), weights)


def _write_zip(path: Path, folder: str, files: Files) -> None:
    """Write files so that nothing but their names and contents shows in it: no time, owner, order, compressor."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", EARLIEST_TIME)
            entry.external_attr, entry.create_system = PLAIN_FILE, UNIX
            archive.writestr(entry, files[name])


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    content = _read(path, remedy)
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise InputError.of(path, "JSON, a record", f"'{error}'", "Correct the file, or copy it again.") from error


def _read(path: Path, remedy: str) -> bytes:
    if not path.is_file():
        raise InputError.of(path, "a file of the bundle", "none", remedy)
    return path.read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
