"""NVFlare: two sites with phantoms of their own train one fusion net in two rounds; the loss must fall at both.

    python tests/clients/nvflare_two_sites.py WORK_FOLDER

Needs nvflare>=2.5 beside trispade, in an environment of its own: `make clients` sets one up. Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

from trispade.bundle_run import build_components, find_bundle, run_stage
from trispade.geometry import PLANES
from trispade.labels import load_scheme
from trispade.phantoms import write_phantom_dataset

SITES = ("site-1", "site-2")
ROUNDS = 2


def prepare_site(bundle: Path, folder: Path, seed: int) -> None:
    """Phantoms that no other site has, and the stages before train_fusion; nothing of it leaves the site."""
    manifest = write_phantom_dataset(folder / "phantoms", num_people=5, seed=seed)
    data = {"dataset_dir": manifest.parent, "manifest_file": manifest, "work_dir": folder / "work"}
    run_stage(bundle, "prepare", "smoke", **data)
    for plane in PLANES:
        run_stage(bundle, "train_spade", "smoke", plane=plane, max_epochs=1, **data)
    run_stage(bundle, "synthesize_planes", "smoke", **data)


def simulate(bundle: Path, folder: Path) -> None:
    """Two sites, federated averaging, from one set of random weights."""
    names = ("fusion_channels", "fusion_norm", "residual", "fusion_label_channels")
    channels, norm, residual, label_channels = build_components(bundle, "train_fusion", names, "smoke")
    architecture = {"in_channels": len(PLANES), "out_channels": 1, "channels": channels, "norm": norm}
    architecture |= {"residual": residual, "label_channels": label_channels}
    architecture["num_classes"] = load_scheme("freesurfer").vocabulary.num_classes
    job = FedJob(name="trispade_fusion")
    network = PTModel({"path": "trispade.networks.FusionNet", "args": architecture})
    stored = job.to_server(network)
    job.to_server(FedAvg(num_clients=len(SITES), num_rounds=ROUNDS, persistor_id=stored["persistor_id"]))
    for site in SITES:
        (folder / site / "rounds.json").unlink(missing_ok=True)
        arguments = f"--bundle {bundle} --folder {folder}"
        script = str(Path(__file__).with_name("nvflare_site.py"))
        job.to(ScriptRunner(script=script, script_args=arguments, framework=FrameworkType.NUMPY), site)
    job.simulator_run(str(folder / "nvflare"))


def main() -> None:
    """Prepare, simulate, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    bundle, _ = find_bundle()
    for number, site in enumerate(SITES):
        prepare_site(bundle.resolve(), folder / site, seed=100 * number)
    simulate(bundle.resolve(), folder)
    failed = False
    for site in SITES:
        file = folder / site / "rounds.json"
        rounds = json.loads(file.read_text()) if file.exists() else []
        losses = [each["loss"] for each in rounds]
        failed |= len(rounds) < ROUNDS or losses[-1] >= losses[0]
        print(f"{site}: loss {losses}, brain PSNR of the received weights {[r['received_brain_psnr'] for r in rounds]}")
    sys.exit("the loss did not fall at both sites in two rounds" if failed else 0)


if __name__ == "__main__":
    main()
