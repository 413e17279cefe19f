"""The synthesize_planes stage: three generators paint the people that they have not seen."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trispade.data import PreparedCase, store_painted_case
from trispade.data.painted import painted_folder
from trispade.distributed import gather, is_first, refuse_lone_ranks
from trispade.errors import InputError
from trispade.geometry import PLANES, Plane
from trispade.inference.inferer import PlaneInferer
from trispade.inference.trained_parts import TrainedGenerator, find_checkpoints, load_generator, shared_style_dim
from trispade.labels import Vocabulary
from trispade.networks.style_encoder import style_from_seed

logger = logging.getLogger(__name__)


class PlaneSynthesis:
    """Paints prepared cases in three planes, each with generators that were not trained on its person.

    Generators with style get one code a case for all planes, drawn by the case's name: the fusion net meets many.

    Args:
        cases: prepared cases.
        checkpoints_dir: folder with ``spade_<plane>/`` and, for cross-fitting, ``spade_<plane>_fold<k>/``.
        checkpoint_name: ``last.pt`` or ``best.pt``.
        planes_dir: where the volumes go.
        vocabulary: that the generators must have.
        architecture: that the generators must have.
        settings: of the prepared cache that the generators must have been trained on.
        device: where to paint.
        batch_size: slices at a time.
        amp: autocast to bfloat16.
        rank: this process, which paints its share of the cases.
        world_size: number of processes.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        checkpoints_dir: str | Path,
        checkpoint_name: str,
        planes_dir: str | Path,
        vocabulary: Vocabulary,
        architecture: Mapping[str, Any],
        settings: Mapping[str, Any],
        device: torch.device | str,
        batch_size: int,
        amp: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        refuse_lone_ranks()
        self.rank, self.world_size = rank, world_size
        self.cases = cases
        self.planes_dir = Path(planes_dir)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.amp = amp
        self.generators: dict[Plane, list[TrainedGenerator]] = {
            plane: [
                load_generator(path, plane, vocabulary, architecture, settings, device)
                for path in find_checkpoints(checkpoints_dir, plane, checkpoint_name)
            ]
            for plane in PLANES
        }
        self.style_dim = shared_style_dim(each for candidates in self.generators.values() for each in candidates)

    def run(self) -> str:
        """Paint every case that has not been painted by these generators; return one line that says what was done.

        Raises:
            InputError: if every generator of a plane has seen a case's person.
        """
        chosen = [(case, self._choose(case)) for case in self.cases]
        painted = 0
        own = chosen[self.rank :: self.world_size]
        with tqdm(own, desc="synthesize planes", unit="scan", disable=not is_first()) as progress:
            for case, generators in progress:
                progress.set_postfix_str(case.case_id)
                painted += self._paint(case, generators)
        line = f"{len(chosen)} cases in {self.planes_dir}, {sum(gather(painted))} of them painted now"
        logger.info(line)
        return line

    def _choose(self, case: PreparedCase) -> dict[Plane, TrainedGenerator]:
        chosen: dict[Plane, TrainedGenerator] = {}
        for plane, candidates in self.generators.items():
            new_to = [generator for generator in candidates if case.person_id not in generator.people]
            if not new_to:
                raise InputError.of(
                    case.case_id,
                    f"a generator of the {plane} plane that was not trained on person {case.person_id}",
                    f"{len(candidates)} that were",
                    "Leave its split out, or train generators without its fold (--held_out_fold).",
                )
            chosen[plane] = new_to[0]
        return chosen

    @torch.inference_mode()
    def _paint(self, case: PreparedCase, generators: Mapping[Plane, TrainedGenerator]) -> int:
        folder = painted_folder(self.planes_dir, case, {plane: g.hash for plane, g in generators.items()})
        if (folder / "case.json").exists():
            return 0
        label_map = torch.from_numpy(case.label_map().astype("int64")).to(self.device)[None, None]
        planes: dict[Plane, torch.Tensor] = {}
        style_seed = zlib.crc32(case.case_id.encode())
        style = style_from_seed(self.style_dim, style_seed) if self.style_dim else None
        for plane, generator in generators.items():
            paint = PlaneInferer(plane, self.batch_size, self.amp, style=style)
            planes[plane] = paint(generator.class_table[label_map], generator.network)[0, 0]
            self.batch_size = paint.batch_size
        record = {
            "prepared_key": case.key,
            "generators": {plane: generator.hash for plane, generator in generators.items()},
            "generator_people": sorted(frozenset().union(*(generator.people for generator in generators.values()))),
            **({"style_seed": style_seed} if self.style_dim else {}),
        }
        store_painted_case(folder, planes, record)
        return 1
