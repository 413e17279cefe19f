"""An endless, seeded stream of batches that any run can take up at any iteration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches cut from an endless stream of seeded permutations.

    Batch ``i`` depends on the seed and on ``i`` alone, so that a run that resumes at iteration ``i`` sees what the
    uninterrupted run sees. Batches are always full: they may span two passes over the data. With several processes each
    takes its share of the global batch, whatever their number; one for whom nothing is left gets an item that another
    one has, as a stand-in that must not count.

    Args:
        num_items: length of the dataset.
        batch_size: global batch size.
        seed: of the permutations.
        rank: this process.
        world_size: number of processes.

    Attributes:
        share: of the global batch that is this process's, 0 to 1.
        iteration: batches that have been used; iteration over the sampler starts there.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if num_items < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "num_items and batch_size must be positive and rank below world_size, got"
                f" {num_items}, {batch_size}, {rank} and {world_size}"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.iteration = 0
        own = range(rank, batch_size, world_size)
        self.share = len(own) / batch_size
        self._places = own or [rank % batch_size]

    def __len__(self) -> int:
        """Batches in one epoch: about one pass over the data."""
        return max(1, self.num_items // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (item, visit) up to the end of the epoch; ``visit`` counts the passes over the data."""
        start = self.iteration
        for iteration in range(start, (start // len(self) + 1) * len(self)):
            first = iteration * self.batch_size
            yield [self._at(first + i) for i in self._places]

    def _at(self, position: int) -> tuple[int, int]:
        visit, place = divmod(position, self.num_items)
        if getattr(self, "_visit", None) != visit:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + visit)
            self._visit, self._order = visit, torch.randperm(self.num_items, generator=generator).tolist()
        return self._order[place], visit


def is_flipped(seed: int, item: int, visit: int) -> bool:
    """Fair coin that depends on its arguments alone, so that augmentation needs no state."""
    generator = torch.Generator().manual_seed(hash((seed, item, visit)) & 0x7FFF_FFFF_FFFF_FFFF)
    return bool(torch.rand((), generator=generator) < 0.5)
