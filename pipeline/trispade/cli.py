"""The ``trispade`` command: the bundle's stages for people who do not think in bundles. It runs the configs."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from trispade import __version__
from trispade.bundle_run import find_bundle, run_stage
from trispade.errors import STOPPED, InputError, exit_on_sigterm

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which typer vendors but does not export
INTERRUPTED = 130  # exit code that shells expect after Ctrl-C

app = typer.Typer(
    help="Anatomical label map in, realistic 3D T1w brain MRI out.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
manifest_app = typer.Typer(help="List a data set's scans, split by person, in a manifest that training reads.")
app.add_typer(manifest_app, name="manifest")

Preset = Annotated[
    str, typer.Option(help="paper (0.7 mm, GPUs), compact (1 mm, workstation) or smoke (4 mm, to test the software).")
]
Bundle = Annotated[
    Path | None, typer.Option(help="Root folder of the bundle [default: $TRISPADE_BUNDLE, else the checkout's].")
]
WorkDir = Annotated[Path | None, typer.Option(help="Where cache and checkpoints go [default: runs/<preset>].")]
DatasetDir = Annotated[Path, typer.Option(help="Folder that the manifest's paths are relative to.")]
ManifestFile = Annotated[Path | None, typer.Option("--manifest", help="Manifest, JSON [default: that of MALC 2012].")]
Scheme = Annotated[
    str,
    typer.Option(
        "--scheme", help="What the label ids mean: freesurfer, synthseg, neuromorphometrics, malc_all, or a TSV."
    ),
]
OwnScheme = Annotated[
    str | None, typer.Option("--scheme", help="What the label ids mean [default: what the manifest says].")
]
Model = Annotated[Path | None, typer.Option(help="Weights [default: the bundle's models/model.pt].")]
OwnModel = Annotated[Path | None, typer.Option("--model", help="Weights [default: <work-dir>/model.pt].")]
DataSet = Annotated[Path, typer.Argument(metavar="DATASET_DIR", help="Root folder of the data set.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The manifest to write, JSON.")]


class Stage(str, Enum):
    """The stages of training in their order, all of them, and the competitor that `evaluate` compares with."""

    prepare = "prepare"
    train_spade = "train_spade"
    synthesize_planes = "synthesize_planes"
    train_fusion = "train_fusion"
    train_realism = "train_realism"
    all = "all"
    train_direct = "train_direct"


class PlaneName(str, Enum):
    """The planes that a generator can paint in, as the choices of an option."""

    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"


class Arm(str, Enum):
    """What a segmentation network learns from."""

    real = "real"
    synthetic = "synthetic"
    both = "both"
    real_all = "real_all"


class OutputFormat(str, Enum):
    """What a synthetic volume is written as."""

    nifti = "nifti"
    mgz = "mgz"
    dicom = "dicom"
    bids = "bids"


class UnknownLabels(str, Enum):
    """What to do with label ids that the scheme does not have."""

    error = "error"
    background = "background"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def synthesize(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="A label map (NIfTI, MGZ, NRRD, DICOM SEG), a folder of them, or a manifest."
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the T1w volumes go.")],
    scheme: Scheme = "freesurfer",
    preset: Preset = "compact",
    dataset_dir: Annotated[
        Path | None, typer.Option(help="Folder that a manifest's paths are relative to [default: its own].")
    ] = None,
    unknown_labels: Annotated[
        UnknownLabels, typer.Option(help="Label ids that the scheme does not have: stop, or take them as background.")
    ] = UnknownLabels.error,
    model: Model = None,
    fusion: Annotated[
        str, typer.Option(help="fidelity (nearest to the real scan) or realism (as sharp as one).")
    ] = "fidelity",
    output_format: Annotated[
        OutputFormat,
        typer.Option("--format", help="NIfTI, MGZ, DICOM series, or NIfTI in a BIDS derivatives data set."),
    ] = OutputFormat.nifti,
    bundle: Bundle = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make finished volumes again, and replace other files of their names.")
    ] = False,
) -> None:
    """Make T1w volumes from label maps, each on its label map's own grid with a JSON sidecar.

    Finished volumes are left alone: after a stop, the same command goes on.
    """
    run_stage(
        _bundle(bundle),
        "inference",
        preset,
        input=labels,
        output_dir=output_dir,
        label_scheme=scheme,
        unknown_labels=unknown_labels.value,
        dataset_dir=dataset_dir or (labels if labels.is_dir() else labels.parent),
        model_file=model,
        fusion=fusion,
        output_format=output_format.value,
        overwrite=overwrite,
    )
    typer.echo(f"T1w volumes in {output_dir}")


@app.command()
def train(
    dataset_dir: DatasetDir,
    stage: Annotated[
        Stage, typer.Option(help="One stage, or all in their order; train_direct, the competitor, is apart.")
    ] = Stage.all,
    plane: Annotated[PlaneName | None, typer.Option(help="One plane of train_spade [default: all three].")] = None,
    preset: Preset = "compact",
    manifest: ManifestFile = None,
    scheme: OwnScheme = None,
    work_dir: WorkDir = None,
    model: Annotated[
        Path | None, typer.Option(help="Where the trained weights go [default: <work-dir>/model.pt].")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training stage.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop each training stage, with a checkpoint, after this time.")
    ] = None,
    bundle: Bundle = None,
) -> None:
    """Train the networks; after a stop, the same command goes on."""
    root = _bundle(bundle)
    common: dict[str, Any] = {
        "dataset_dir": dataset_dir,
        "manifest_file": manifest,
        "label_scheme": scheme,
        "work_dir": work_dir,
    }
    limits: dict[str, Any] = {"max_epochs": max_epochs, "max_minutes": max_minutes}
    if stage in (Stage.prepare, Stage.all):
        run_stage(root, "prepare", preset, **common)
    if stage in (Stage.train_spade, Stage.all):
        for each in PlaneName if plane is None else (plane,):
            run_stage(root, "train_spade", preset, plane=each.value, **common, **limits)
    trained = work_dir or Path("runs") / preset
    if stage is Stage.all and _unfinished(trained, *(f"spade_{each.value}" for each in PlaneName)):
        typer.echo("the generators are not trained to the end yet: the same command goes on")
        return
    if stage in (Stage.synthesize_planes, Stage.all):
        run_stage(root, "synthesize_planes", preset, **common)
    if stage in (Stage.train_fusion, Stage.all):
        run_stage(root, "train_fusion", preset, model_file=model, **common, **limits)
    if stage is Stage.all and _unfinished(trained, "fusion"):
        typer.echo("the fusion net is not trained to the end yet: the same command goes on")
        return
    if stage in (Stage.train_realism, Stage.all):
        run_stage(root, "train_fusion", preset, overlay="realism", model_file=model, **common, **limits)
    if stage is Stage.train_direct:
        run_stage(root, "train_direct", preset, **common, **limits)


@app.command()
def evaluate(
    dataset_dir: DatasetDir,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="For tables and page [default: <work-dir>/evaluation]."),
    ] = None,
    preset: Preset = "compact",
    manifest: ManifestFile = None,
    scheme: OwnScheme = None,
    work_dir: WorkDir = None,
    model: OwnModel = None,
    bundle: Bundle = None,
) -> None:
    """Compare the synthetic volumes of the test people, and simpler methods, with the real scans; report.html."""
    run_stage(
        _bundle(bundle),
        "evaluate",
        preset,
        dataset_dir=dataset_dir,
        output_dir=output_dir,
        manifest_file=manifest,
        label_scheme=scheme,
        work_dir=work_dir,
        model_file=model,
    )


@app.command()
def downstream(
    dataset_dir: DatasetDir,
    arm: Annotated[Arm, typer.Option(help="What the segmentation network learns from.")],
    preset: Preset = "compact",
    manifest: ManifestFile = None,
    scheme: OwnScheme = None,
    work_dir: WorkDir = None,
    model: OwnModel = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop the training, with a checkpoint, after this time.")
    ] = None,
    bundle: Bundle = None,
) -> None:
    """Train a segmentation network on real or synthetic T1w and test it on real people; run it for each arm."""
    run_stage(
        _bundle(bundle),
        "evaluate_downstream",
        preset,
        arm=arm.value,
        dataset_dir=dataset_dir,
        manifest_file=manifest,
        label_scheme=scheme,
        work_dir=work_dir,
        model_file=model,
        max_minutes=max_minutes,
    )


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where everything goes.")] = Path("demo"),
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Without weights: train small networks on phantoms first, in minutes."),
    ] = False,
    fusion: Annotated[
        str, typer.Option(help="fidelity (nearest to the real scan) or realism (as sharp as one).")
    ] = "fidelity",
    bundle: Bundle = None,
) -> None:
    """See T1w volumes of three anatomies that come with trispade; needs no data, and takes minutes.

    Finished volumes are left alone: after a stop, the same command goes on.
    """
    root = _bundle(bundle)
    if from_scratch:
        from trispade.report.demo_from_scratch import run_demo_from_scratch

        volume, picture = run_demo_from_scratch(root, output_dir)
        typer.echo(f"T1w volume: {volume}\npicture:    {picture}")
        return
    from trispade.report.demo import run_demo

    made = run_demo(root, output_dir, fusion)
    for label_map, t1w in zip(made.label_maps, made.volumes, strict=True):
        typer.echo(f"T1w volume: {t1w}, from {label_map.name}")
    typer.echo(f"picture:    {made.picture}\npage:       {made.page}")


@app.command()
def package(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Root folder of the bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip to write.")],
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Leave the weights out, or do without them.")
    ] = False,
) -> None:
    """Write the bundle as one zip that runs without trispade installed, and its SHA-256 beside it."""
    from trispade.sharing import package_bundle

    sha256 = package_bundle(bundle, output, without_weights)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB\nSHA-256 {sha256}, also in {output}.sha256")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packaged bundle, a zip.")],
    sha256: Annotated[
        str | None, typer.Option(help="Digest that it must have [default: what FILE.sha256 beside it says].")
    ] = None,
) -> None:
    """Check a packaged bundle before anything in it is unpacked, loaded or run; exit code 1 if there are findings."""
    from trispade.sharing.verify_bundle import verify

    report = verify(file, sha256)
    typer.echo(report.text())
    raise typer.Exit(1 if report.findings else 0)


@manifest_app.command("malc2012")
def manifest_malc2012(dataset_dir: DataSet, output: Output) -> None:
    """MALC 2012: BIDS names, or those of the malf.templates R package."""
    from trispade.manifest_builders import build_malc2012

    _write(build_malc2012(dataset_dir), output)


@manifest_app.command("hcp")
def manifest_hcp(
    dataset_dir: DataSet,
    output: Output,
    whole_head: Annotated[bool, typer.Option("--whole-head", help="Whole-head T1w instead of brain-only.")] = False,
) -> None:
    """Human Connectome Project: <id>/T1w/ with T1w_acpc_dc_restore*.nii.gz and aparc+aseg.nii.gz."""
    from trispade.manifest_builders import build_hcp

    _write(build_hcp(dataset_dir, whole_head=whole_head), output)


@manifest_app.command("bids")
def manifest_bids(
    dataset_dir: DataSet,
    output: Output,
    scheme: Scheme = "freesurfer",
    label_desc: Annotated[
        str | None, typer.Option(help="Take label maps with this desc entity, where a scan has several.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Take files with this space entity [default: the scan's own space].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random split by person.")] = 0,
) -> None:
    """Any BIDS tree with *_T1w.nii.gz and *_dseg.nii.gz, derivatives folders included."""
    from trispade.labels import load_scheme
    from trispade.manifest_builders import build_bids

    load_scheme(scheme)
    if scheme.endswith(".tsv"):  # a manifest names a scheme's table relative to itself
        scheme = Path(os.path.relpath(scheme, output.parent)).as_posix()
    _write(build_bids(dataset_dir, seed=seed, label_scheme=scheme, label_desc=label_desc, space=space), output)


def _unfinished(work_dir: Path, *stages: str) -> bool:
    """Tell whether a stage has epochs left; the next one must not learn from what will still change."""
    from trispade.engines import is_finished

    return not all(is_finished(work_dir / stage) for stage in stages)


def _write(manifest: dict[str, Any], output: Path) -> None:
    from trispade.manifest_builders import write_manifest

    write_manifest(manifest, output)
    rows = [row for name in ("training", "validation", "test") for row in manifest[name]]
    splits = dict.fromkeys(row["split"] for row in rows)
    counts = ", ".join(f"{sum(row['split'] == split for row in rows)} {split}" for split in splits)
    typer.echo(f"{output}: {len(rows)} scans of {len({row['person_id'] for row in rows})} people ({counts})")


def _bundle(folder: Path | None) -> Path:
    bundle, origin = find_bundle(folder)
    typer.echo(f"bundle: {bundle} (from {origin})", err=True)
    return bundle


def _fail(message: str, exit_code: int = 1) -> None:
    print(f"trispade: {message}", file=sys.stderr)
    sys.exit(exit_code)


def main() -> None:
    """Run the command; bad input and wrong usage end it with one line and exit code 1."""
    exit_on_sigterm()
    try:
        result = app(prog_name="trispade", standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "trispade"
        _fail(f"{' '.join(error.format_message().split()).removesuffix('.')}. See `{command} --help`.")
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    if result == INTERRUPTED:
        _fail(STOPPED, INTERRUPTED)
    sys.exit(result)


if __name__ == "__main__":
    main()
