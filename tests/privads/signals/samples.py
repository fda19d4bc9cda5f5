"""Made-up rows for tables: a source that counts how often it is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from accounting import mechanisms
from accounting.budget import Budget
from privads.logs.raw import Raw
from privads.logs.schema import Schema
from privads.signals.bounds import Bounds
from privads.signals.query import Query
from privads.signals.table import NoisyTable, Terms

RANGE = (0.0, 10.0)


def facts(*, public: bool = True, unit: Sequence[str] = ("user",)) -> Schema:
    return Schema.load(
        {
            "dataset": "made-up",
            "population": 100,
            "rows": 1000,
            "unit": list(unit),
            "public": public,
            "labels": {"click": "click"},
            "numeric": {"bid": {"range": list(RANGE)}},
            "categorical": {"site": {"buckets": 8}, "size": {"buckets": 8}},
        }
    )


@dataclass
class Made:
    """Rows in memory. Each list has one entry for a row; None is missing."""

    users: Sequence[str]
    sites: Sequence[str | None]
    clicks: Sequence[int | None]
    bids: Sequence[float] | None = None
    sizes: Sequence[str | None] | None = None
    schema: Schema = field(default_factory=facts)
    reads: int = 0
    features: None = None
    split_text: str = "all rows"

    def check(self) -> None:
        pass

    def raw(self) -> Iterator[Raw]:
        self.reads += 1
        rows = len(self.users)
        for start in range(0, rows, 7):  # in parts, each with a dictionary of its own
            part = slice(start, start + 7)
            known = np.array([one is not None for one in self.clicks[part]])
            size = len(known)
            yield Raw(
                numbers={"bid": np.array(self.bids[part] if self.bids else [0.0] * size, dtype=np.float64)},
                texts={
                    "site": coded(self.sites[part]),
                    "size": coded(self.sizes[part] if self.sizes else [None] * size),
                },
                labels={"click": np.array([one == 1 for one in self.clicks[part]])},
                observed={"click": known},
                units=[np.array(self.users[part], dtype=object)],
                times=np.full(size, "NaT", dtype="datetime64[us]"),
            )


def table(query: Query, values: Mapping[str, np.ndarray], noise_std: float) -> NoisyTable:
    """A noisy table as a release would make it, of values that were drawn elsewhere."""
    budget = Budget(epsilon=1.0, delta=1e-6, unit="user")
    event = mechanisms.gaussian(noise_multiplier=4.22)
    return NoisyTable(
        query=query,
        values=values,
        noise_std={measure: np.full(len(value), noise_std) for measure, value in values.items()},
        terms=Terms(dataset="made-up", event=event, budget=budget, bounds=Bounds(), law="gaussian"),
        listed=query.keys,
    )


def coded(values: Sequence[str | None]) -> tuple[np.ndarray, list[str | None]]:
    distinct: list[str | None] = [one for one in dict.fromkeys(values) if one is not None]
    codes = [-1 if one is None else distinct.index(one) for one in values]
    return np.array(codes, dtype=np.int64), [*distinct, None]
