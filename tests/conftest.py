"""What every test needs before torch is loaded, and a PostgreSQL server for those that ask for one."""

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from benchmarks.postgres import Server

# The operations here are small, and the cores are shared: threads that spin for each other cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Server]":
    """A running PostgreSQL server."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'privads[postgres]'")
    from benchmarks.postgres import Server, binaries

    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    server = Server(programs)
    yield server
    server.remove()
