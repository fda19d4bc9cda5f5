"""How large a run is where nobody says: batch, steps and the like, from public facts only."""

import math

SMALL_BATCH = 8192
LARGEST_DEFAULT_BATCH = 32_768
ROWS_PER_UNIT = 8


def default_batch(population: int) -> int:
    """Returns ``min(max(population / 5, min(population / 2, 8192)), 32768)``.

    At the same number of rows large batches need less noise in all; small populations can afford half of their units.
    """
    return max(1, min(max(population // 5, min(population // 2, SMALL_BATCH)), LARGEST_DEFAULT_BATCH))


def default_largest_batch(batch: int, population: int, most_units: int) -> int:
    """Returns ``min(ceil(b + 6 sqrt(b)), most_units)``, b = batch most_units / population: hardly ever is one cut."""
    expected = batch * most_units / population
    return min(math.ceil(expected + 6 * math.sqrt(expected)), most_units)


def default_steps(population: int) -> int:
    """Returns ``min(300 max(1, sqrt(population / 100000)), 6000)``: about 5 epochs at 40 million units."""
    return min(round(300 * max(1.0, math.sqrt(population / 1e5))), 6000)


def schedule(population: int, batch: int | None, epochs: float | None) -> tuple[int, int]:
    """Returns (batch, steps): what is given, and the defaults for the rest; ``steps = epochs population / batch``."""
    batch = default_batch(population) if batch is None else batch
    if not isinstance(batch, int) or not 1 <= batch <= population:
        raise ValueError(f"batch must be a whole number in [1, population = {population}], got {batch!r}")
    if epochs is None:
        return batch, default_steps(population)
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be positive, got {epochs}")
    return batch, max(1, round(epochs * population / batch))
