"""The table of rounds: what it takes, what it refuses by name, and that no other verb needs to know it."""

import subprocess
import sys
from pathlib import Path

import pytest

from federation.config import FederationTable, federation_table
from privads.config import ConfigError
from privads.run_config import RunConfig, read_config

JOB = """\
[data]
path = "log.parquet"
schema = "ads.toml"
[plan]
epsilon = 1.0
delta = 1e-6
unit = "user"
"""


def read(folder: Path, table: str) -> FederationTable:
    file = folder / "run.toml"
    file.write_text(JOB + table)
    return federation_table(read_config(file), source=file)


def test_a_file_without_the_table_has_its_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "") == FederationTable()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rounbs = 3", "run.toml: unknown key 'federation.rounbs'; did you mean 'rounds'?"),
        ("rounds = 0", "run.toml: federation.rounds: "),
        ("rounds = 2.5", "run.toml: federation.rounds: "),
        ("clip_norm = inf", "run.toml: federation.clip_norm: "),
        ("over_selection = -0.1", "run.toml: federation.over_selection: "),
        ("local_steps = 0", "run.toml: federation.local_steps: "),
        ("server = 'adamw'", "run.toml: federation.server: "),
        ("silo_paths = 'one.parquet'", "run.toml: federation.silo_paths: Input should be a list"),
        ("silo_paths = ['one.parquet', 2]", "run.toml: federation.silo_paths.#2: "),
    ],
)
def test_what_it_does_not_know_is_named_as_it_stands_in_the_file(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, f"[federation]\n{line}\n")
    assert message in str(refused.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, '[federation]\nsilo_paths = ["a.parquet", "/b.parquet"]\n')
    assert found.silo_paths == [str(tmp_path / "a.parquet"), "/b.parquet"]


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("federation = 3\n" + JOB)
    with pytest.raises(ConfigError, match="federation: Input should be a table"):
        read_config(tmp_path / "run.toml")


def test_it_is_read_without_torch() -> None:
    """A typing error is answered at once."""
    code = "import sys, federation.config; assert not {'torch', 'pandas', 'opacus'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_job_keeps_what_it_was_given() -> None:
    data = {"path": "x", "schema": "y"}
    stated = RunConfig.model_validate(
        {"data": data, "plan": {"unit": "user", "without_privacy": True}, "federation": {"rounds": 3}}
    )
    assert stated.federation == {"rounds": 3}
