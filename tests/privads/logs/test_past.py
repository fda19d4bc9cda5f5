"""Looking back in more rows than fit into memory, against a ranking of all rows in memory."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from privads.logs import database
from privads.logs.encode import Part
from privads.logs.past import HOUR, Past, looking_back

ROWS = 400_000


def parts(users: np.ndarray, micros: np.ndarray) -> Iterator[Part]:
    for start in range(0, ROWS, 50_000):
        some = slice(start, start + 50_000)
        nothing = np.zeros((50_000, 0))
        yield Part(
            dense=nothing.astype(np.float32),
            ids=nothing.astype(np.int32),
            labels={},
            observed={},
            reference={},
            units=[np.array([f"a user of a rather long name, {user:09}" for user in users[some]], dtype=object)],
            times=micros[some].astype("datetime64[us]"),
            fits=np.ones(50_000, dtype=np.bool_),
        )


def test_rows_that_do_not_fit_into_memory_wait_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed bug: the database could not write its encrypted files, and failed when it first had to."""
    monkeypatch.setattr(database, "MEMORY", "50MB")
    rng = np.random.default_rng(0)
    users, micros = rng.integers(0, ROWS // 4, ROWS), rng.integers(0, 50, ROWS) * HOUR
    with looking_back(parts(users, micros), [Past()], unit_columns=1) as look_back:
        found = [look_back(part).pasts[Past()] for part in parts(users, micros)]
    rows = pd.DataFrame({"user": users, "micros": micros})
    earlier = rows.groupby("user")["micros"].rank(method="min").to_numpy() - 1
    assert (np.concatenate([one.rows for one in found]) == earlier).all()
    moments = rows.drop_duplicates().sort_values(["user", "micros"])
    moments["before"] = moments.groupby("user")["micros"].shift()
    before = rows.merge(moments, on=["user", "micros"], how="left")["before"].to_numpy()
    expected = (micros - before) / HOUR
    np.testing.assert_allclose(np.concatenate([one.hours for one in found]), expected)
