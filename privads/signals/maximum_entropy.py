"""`MaximumEntropy`: the law of rows and labels that noisy tables leave open, as a model: it predicts and it draws logs.

Of all laws with given expectations of the one-hot columns and pairs K(x), and of those among positives, the one of the
greatest entropy is the Markov random field

    P(x, y) = exp(K(x) mu + y K(x) theta) / Z,        y in {0, 1},    so    P(y = 1 | x) = sigmoid(K(x) theta):

logistic regression is what it implies (Gilotte et al. 2022, arXiv 2201.13123). A log that is drawn from it has no
row of anyone: any model can be trained on it, and the tables have paid for all. `maximum_entropy_fit` makes one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from privads.signals.chains import Codes, Factors, Field, Floats, Tree, summed, sweep

BURN_IN = 20
"""Steps from the tree's draws to rows of the field."""

FORMAT = "privads maximum entropy 1"

Progress = Callable[[int, int], None]
"""Called with how many steps are done and how many there are, which is public."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A table that the model was learned from. measure: "rows" or "positives". noise_std: of every cell."""

    columns: tuple[int, ...]
    measure: str
    cells: int
    noise_std: float


@dataclass(frozen=True, kw_only=True, eq=False)
class MaximumEntropy:
    """The model. codings: per column the merged value of each value. field: the parameters, of merged values. tree:
    where chains start. rows: the noisy number of rows of the log. tables: what it was learned from. source: the same in
    words: the release's event, budget and unit, as who made the tables says it.
    """

    codings: tuple[Codes, ...]
    field: Field
    tree: Tree
    rows: float
    tables: tuple[Learned, ...]
    source: str

    def predict(self, rows: Codes) -> Floats:
        """Returns (rows,) P(y = 1 | x) of rows (rows, columns) of codes."""
        return np.asarray(expit(summed(self.field.theta, self._merged(rows))))

    def sample(
        self, count: int, *, seed: int, burn_in: int = BURN_IN, progress: Progress | None = None
    ) -> tuple[Codes, NDArray[np.int8]]:
        """Returns a synthetic log: rows (count, columns) of codes, and labels (count,) 0 or 1.

        Each row is the end of a chain of its own, so rows are independent. A merged value becomes one of its values,
        all alike: the tables do not tell them apart.
        """
        if count < 1 or burn_in < 0:
            raise ValueError(f"count must be at least 1 and burn_in not negative, got {count} and {burn_in}")
        rng = np.random.default_rng(seed)
        rows = self.tree.draw(count, rng)
        for step in range(burn_in):
            rows = sweep(self.field, self.tree, rows, rng)
            if progress is not None:
                progress(step + 1, burn_in)
        labels = rng.random(count) < expit(summed(self.field.theta, rows))
        own = [_one_of(codes, rows[:, column], rng) for column, codes in enumerate(self.codings)]
        return np.stack(own, axis=1), labels.astype(np.int8)

    def save(self, path: str | Path) -> None:
        """Writes the model as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "MaximumEntropy":
        """Returns the model that `save` wrote."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a saved maximum-entropy model ({type(error).__name__})") from None

    def as_dict(self) -> dict[str, Any]:
        """Returns the model as plain lists and numbers."""
        return {
            "format": FORMAT,
            "source": self.source,
            "rows": self.rows,
            "tables": [{**vars(table), "columns": list(table.columns)} for table in self.tables],
            "codings": [codes.tolist() for codes in self.codings],
            "mu": _listed(self.field.mu),
            "theta": _listed(self.field.theta),
            "singles": [law.tolist() for law in self.tree.singles],
            "links": [[parent, child, law.tolist()] for parent, child, law in self.tree.links],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "MaximumEntropy":
        """Returns the model of `as_dict`."""
        if saved["format"] != FORMAT:
            raise ValueError(f"the model's format must be {FORMAT!r}, got {saved['format']!r}")
        codings = tuple(np.array(codes, dtype=np.int64) for codes in saved["codings"])
        sizes = tuple(int(codes.max()) + 1 for codes in codings)
        return cls(
            codings=codings,
            field=Field(sizes=sizes, mu=_factors(saved["mu"]), theta=_factors(saved["theta"])),
            tree=Tree(
                singles=tuple(np.array(law) for law in saved["singles"]),
                links=tuple((parent, child, np.array(law)) for parent, child, law in saved["links"]),
            ),
            rows=saved["rows"],
            tables=tuple(Learned(**{**table, "columns": tuple(table["columns"])}) for table in saved["tables"]),
            source=saved["source"],
        )

    def _merged(self, rows: Codes) -> Codes:
        if rows.ndim != 2 or rows.shape[1] != len(self.codings):
            raise ValueError(f"rows must be (rows, {len(self.codings)}), got {rows.shape}")
        for column, codes in enumerate(self.codings):
            if len(rows) and not 0 <= rows[:, column].min() <= rows[:, column].max() < len(codes):
                raise ValueError(f"codes of column {column} must be in [0, {len(codes)})")
        return np.stack([codes[rows[:, column]] for column, codes in enumerate(self.codings)], axis=1)


def _one_of(codes: Codes, merged: Codes, rng: np.random.Generator) -> Codes:
    """Returns for each merged value one of the values that it stands for."""
    by_code = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    first = np.cumsum(counts) - counts
    return np.asarray(by_code[first[merged] + (rng.random(len(merged)) * counts[merged]).astype(np.int64)])


def _listed(factors: Factors) -> list[list[Any]]:
    return [[list(key), values.tolist()] for key, values in factors.items()]


def _factors(listed: Iterable[tuple[list[int], Any]]) -> Factors:
    return {tuple(key): np.array(values, dtype=np.float64) for key, values in listed}
