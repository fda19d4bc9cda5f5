"""A user has one identifier in every log, whoever else is in it, and nobody else has it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privads.logs import cache, reader
from privads.logs.logs import Logs
from tests.privads.logs.test_logs import MOMENT, numbers, schema, write

KEY = b"sixteen bytes at least"


def identified(logs: Logs) -> dict[str, tuple[int, int]]:
    """Returns {user: identifier}, told by column n, which holds the number in the user's key."""
    found = logs.identifiers(KEY)
    assert found.shape == (int(logs.units.max()) + 1, 2)
    who = {f"u{number // 10}": unit for number, unit in zip(numbers(logs), logs.units, strict=True)}
    return {user: (int(found[unit, 0]), int(found[unit, 1])) for user, unit in who.items()}


@pytest.mark.parametrize("memory", [1 << 26, 400])
def test_one_user_has_one_identifier_in_all_logs_wherever_units_are_numbered(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows each of 60 and 50 users, 30 of them in both logs, in any order; also where units go over the disk."""
    monkeypatch.setattr(cache, "_MEMORY_BYTES", memory)
    monkeypatch.setattr(reader, "_BATCH_ROWS", 20)
    rng, made = np.random.default_rng(0), []
    for name, users in (("a", range(60)), ("b", range(30, 80))):
        rows = rng.permutation([10 * user + row for user in users for row in range(3)]).tolist()
        path = write(tmp_path / f"{name}.parquet", u=[f"u{row // 10}" for row in rows], n=[float(row) for row in rows])
        made.append(Logs(path, schema()))
    one, two = (identified(logs) for logs in made)
    assert len(one) == 60
    assert len({*one.values(), *two.values()}) == 80
    assert all(one[user] == two[user] for user in one.keys() & two.keys())
    assert not {*one.values()} & {tuple(map(int, row)) for row in made[0].identifiers(b"another key of silos")}


def test_identifiers_keep_keys_of_several_columns_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pairs = [("a", "bc"), ("ab", "c"), ("abc", "a"), ("a", "bca"), ("a", "bc")]
    frame = pd.DataFrame({"u": [u for u, _ in pairs], "v": [v for _, v in pairs], "t": MOMENT, "e": pd.NaT, "y": 1})
    pq.write_table(pa.Table.from_pandas(frame.assign(n=1.0), preserve_index=False), path)
    logs = Logs(path, schema(unit=["u", "v"], unit_name="user-place"))
    found = logs.identifiers(KEY)
    assert len(found) == len({*map(tuple, found.tolist())}) == len(set(logs.units)) == 4


def test_identifiers_need_a_key_and_unit_columns(tmp_path: Path) -> None:
    logs = Logs(write(tmp_path / "a.parquet", y=[1]), schema())
    with pytest.raises(ValueError, match="key must have 16 to 64 bytes, got 5"):
        logs.identifiers(b"short")
    rows = Logs(tmp_path / "a.parquet", schema(unit=[], rows=100))
    with pytest.raises(ValueError, match="need unit columns"):
        rows.identifiers(KEY)
