"""A PostgreSQL server for benchmarks and tests: made in a temporary directory, fsync on, gone when they end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL

USER = "privads"
PASSWORD = "tr0ub4dor:@/%&3"
"""One that every URL must escape, and that no message may show."""

START_SECONDS = 60


def binaries() -> Path | None:
    """Where the newest installed server's programs are, if any is installed."""
    found = shutil.which("postgres")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    places = [Path(found).resolve()] if found else versions[-1:]
    return next((place.parent for place in places if (place.parent / "initdb").exists()), None)


class Server:
    """A running server. PostgreSQL refuses to run as root; root starts it as another user."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="privads-pg-"))
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = _unprivileged()
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._directory, user.pw_uid, user.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._owners: dict[str, psycopg.Connection] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._make()
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Where SQLAlchemy finds a database of the server."""
        where = URL.create("postgresql+psycopg", USER, PASSWORD, "127.0.0.1", self.port, database)
        return where.render_as_string(hide_password=False)

    def connect(self, database: str = "postgres", *, search_path: str = "public") -> psycopg.Connection:
        """A connection of the owner, in autocommit."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            options=f"-c search_path={search_path}",
            autocommit=True,
        )

    def empty(self, database: str) -> None:
        """Takes the ledger out of a database, which is made if there is none; whoever is connected is cut off."""
        owner = self._owners.get(database)
        if owner is None:
            with self.connect() as connection:
                connection.execute(f"CREATE DATABASE {database}")
        if owner is None or owner.closed:
            owner = self._owners[database] = self.connect(database)
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        owner.execute("DROP SCHEMA IF EXISTS privads_ledger CASCADE")

    def start(self, *settings: str) -> None:
        """Starts the server with settings such as `fsync=off`, and returns when it answers."""
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._directory}"]
        options += ["max_connections=60", "shared_buffers=16MB", "restart_after_crash=off", *settings]
        log = (self._directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self._data,
                    *(part for option in options for part in ("-c", option)),
                ],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # an interrupt from the keyboard is for whoever started it to handle
                **self._identity,
            )
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    said = (self._directory / "log").read_text()[-2000:]
                    raise RuntimeError(f"the server did not start: {said}") from error
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server: SIGINT is `pg_ctl stop -m fast`; SIGQUIT is `-m immediate`, which is a crash."""
        for connection in self._owners.values():
            connection.close()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def remove(self) -> None:
        """Stops the server and deletes all it wrote."""
        try:
            self.stop(signal.SIGQUIT)
        finally:
            shutil.rmtree(self._directory)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _make(self) -> None:
        secret = self._directory / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(self._programs / "initdb", "-D", self._data, "--username", USER, "--pwfile", secret),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self._directory,
            **self._identity,
        )


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
