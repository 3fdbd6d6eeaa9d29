"""The items of each step, which depend only on the seed and the index of the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from fewtokens.data.clips import combine_seeds
from fewtokens.train.settings import Settings


class Steps(Sampler[list[tuple[int, int]]]):
    """Samples the (epoch, index) of the items of one process, for each part of each step.

    Every epoch is one permutation; epochs follow one another without a gap, so every step is full, even if the number
    of items is not a multiple of the batch or is smaller.
    """

    def __init__(self, items: int, settings: Settings, total: int, start: int, rank: int, world_size: int) -> None:
        part = settings.batch // settings.accumulate
        if part % world_size:
            raise ValueError(
                f"batch {settings.batch} in {settings.accumulate} parts cannot be divided among {world_size} processes"
            )
        self.items, self.settings, self.total, self.start = items, settings, total, start
        self.part, self.rank, self.world_size = part, rank, world_size

    def __len__(self) -> int:
        return (self.total - self.start) * self.settings.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        for part in range(self.start * self.settings.accumulate, self.total * self.settings.accumulate):
            first = part * self.part
            keys = []
            for position in range(first + self.rank, first + self.part, self.world_size):
                epoch, index = divmod(position, self.items)
                if epoch not in orders:
                    generator = torch.Generator().manual_seed(combine_seeds(self.settings.seed, epoch, -1))
                    orders = {e: order for e, order in orders.items() if e >= epoch - 1}
                    orders[epoch] = torch.randperm(self.items, generator=generator).tolist()
                keys.append((epoch, orders[epoch][index]))
            yield keys
