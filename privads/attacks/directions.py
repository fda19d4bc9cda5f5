"""Directions in which canaries push a model's weights, or are looked for.

Those of pushes have no weight in common: they are orthogonal, and no canary hides another.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions within one parameter: canary ``of[i]`` goes ``weights[i, k]`` at ``places[i, k]`` of the flat tensor.

    of: (n,), each once. places, weights: (n, width), float64; every row of weights has length 1, or is 0.
    """

    of: Tensor
    places: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Directions":
        """Returns them on ``device``."""
        return Directions(self.of.to(device), self.places.to(device), self.weights.to(device))

    def add(self, total: Tensor, amounts: Tensor) -> Tensor:
        """Returns ``total`` with ``amounts`` (n,) along the directions added to it: in its place, where it is whole."""
        flat = total.reshape(-1)
        flat.index_add_(0, self.places.flatten(), (self.weights * amounts[:, None]).flatten().to(flat.dtype))
        return flat.view_as(total)

    def along(self, value: Tensor) -> Tensor:
        """Returns (n,) how far ``value`` goes along each direction, in float64."""
        return (value.reshape(-1)[self.places].double() * self.weights).sum(1)


def one_weight_each(
    parameters: Sequence[Tensor], shares: Sequence[int], generator: np.random.Generator
) -> list[Directions | None]:
    """Returns for each parameter the directions in it: a weight for each of its share of canaries, of random sign."""
    found: list[Directions | None] = []
    for parameter, share, first in _numbered(parameters, shares):
        places = generator.choice(parameter.numel(), size=share, replace=False)
        found.append(_directions(parameter, first, places[:, None], _signs(generator, share, 1)))
    return found


def one_row_each(
    parameters: Sequence[Tensor], shares: Sequence[int], generator: np.random.Generator
) -> list[Directions | None]:
    """Returns for each parameter, (rows, width) where it has a share, a row for each of its share of canaries.

    Within its row a canary goes the same distance at each weight, with random signs.
    """
    found: list[Directions | None] = []
    for parameter, share, first in _numbered(parameters, shares):
        width = parameter.shape[-1]
        rows = generator.choice(len(parameter), size=share, replace=False)
        places = rows[:, None] * width + np.arange(width)
        found.append(_directions(parameter, first, places, _signs(generator, share, width)))
    return found


def _numbered(parameters: Sequence[Tensor], shares: Sequence[int]) -> Iterator[tuple[Tensor, int, int]]:
    """Yields each parameter with its share of canaries, and the first one's number."""
    firsts = itertools.accumulate(shares, initial=0)
    yield from zip(parameters, shares, firsts, strict=False)


def _signs(generator: np.random.Generator, count: int, width: int) -> NDArray[np.float64]:
    """Returns (count, width) random signs, over sqrt(width): rows of length 1."""
    signs: NDArray[np.float64] = (2.0 * generator.integers(0, 2, (count, width)) - 1.0) / np.sqrt(width)
    return signs


def _directions(
    parameter: Tensor, first: int, places: NDArray[np.int64], weights: NDArray[np.float64]
) -> Directions | None:
    if not len(places):
        return None
    of = torch.arange(first, first + len(places))
    return Directions(of, torch.from_numpy(places), torch.from_numpy(weights)).to(parameter.device)


def check_room(count: int, room: int, *, what: str) -> None:
    """Raises ValueError where there is no direction for each of ``count`` canaries among ``room`` of ``what``."""
    if room < count:
        raise ValueError(
            f"each of {count} canaries needs a direction of its own, and {room} {what} of this model get their noise "
            "at every step: plant fewer, or canaries of kind 'user'"
        )


def shared(count: int, rooms: Sequence[int]) -> list[int]:
    """Returns how many of ``count`` go into each room: the same number, but for the rooms that hold fewer.

    So what goes wrong in a small parameter is seen as well as in a large one.

    >>> shared(10, [2, 100, 5])
    [2, 4, 4]
    """
    if count > sum(rooms):
        raise ValueError(f"{count} do not fit into rooms for {sum(rooms)}")
    found = [0] * len(rooms)
    while count:
        open_rooms = [place for place, room in enumerate(rooms) if found[place] < room]
        each = max(1, count // len(open_rooms))
        for place in open_rooms:
            more = min(each, rooms[place] - found[place], count)
            found[place] += more
            count -= more
    return found
