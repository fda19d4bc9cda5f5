"""Starts a SuperLink and two SuperNodes on this machine, with TLS and registered keys, and trains between them.

    python examples/deployment/loopback.py run

Everything lies in the folder that is named, and everything that was started is stopped at the end.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keys
import pyarrow.compute
import pyarrow.parquet

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.record import Report
from privads.logs.simulator import simulate

HERE, BIN = Path(__file__).resolve().parent, Path(sys.executable).parent
USERS, NODES, SECONDS = 4_000, 2, 1_500


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def write_silos(folder: Path) -> None:
    """Simulate one market's log and give each silo the rows of its own users."""
    log = simulate(USERS, seed=1)
    numbers = pyarrow.compute.dictionary_encode(log["user_id"]).combine_chunks().indices.to_numpy()
    for silo in range(NODES):
        pyarrow.parquet.write_table(log.filter(numbers % NODES == silo), folder / f"silo-{silo}.parquet")


@contextlib.contextmanager
def started(name: str, *arguments: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Runs a program beside this one, its output in NAME.log, and stops it at the end."""
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        print(f"$ {' '.join(arguments)}", flush=True)
        program = [BIN / arguments[0], *arguments[1:]]
        process = subprocess.Popen(program, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def flwr(*arguments: str, folder: Path, environment: dict[str, str], tries: int = 1) -> str:
    """Run one verb of Flower's command line; returns what it printed. tries: while the SuperLink is starting."""
    print(f"$ flwr {' '.join(arguments)}", flush=True)
    for left in reversed(range(tries)):
        program = [BIN / "flwr", *arguments]
        done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if left:
            time.sleep(2)
    raise SystemExit(f"flwr {arguments[0]} failed:\n{done.stdout}{done.stderr}")


def wait(folder: Path, environment: dict[str, str]) -> None:
    """Wait for the report, or for the run to end without one; `flwr run` itself says only that it was submitted."""
    began, looks = time.monotonic(), 0
    while not (folder / "result" / "report.json").exists():
        time.sleep(1)
        looks += 1
        if looks % 20 == 0:
            listed = json.loads(flwr("list", "loopback", "--format", "json", folder=folder, environment=environment))
            status = listed["runs"][0]["status"]
            print(f"  {status} for {time.monotonic() - began:.0f} s", flush=True)
            if status.startswith("finished") and not (folder / "result" / "report.json").exists():
                raise SystemExit(f"the run ended ({status}): {folder}/superlink.log says why")
        if time.monotonic() > began + SECONDS:
            raise SystemExit(f"no report after {SECONDS} s: {folder}/superlink.log says why")


def main(folder: Path) -> None:
    """Make keys, data and a budget, start everything, train, show the report."""
    if folder.exists():
        raise SystemExit(f"{folder} exists already, and nothing is overwritten: name a new folder")
    folder.mkdir(parents=True)
    folder = folder.resolve()
    write_silos(folder)
    keys.main(folder, "127.0.0.1", NODES)
    ledger = f"sqlite:///{folder / 'budget.db'}"
    Ledger.init(ledger, dataset="simulated-ads", budget=Budget(epsilon=5.0, delta=9e-5, unit="user"))
    shutil.copytree(HERE / "app", folder / "app")  # `flwr run` writes into it
    link, *ports = free_ports(1 + NODES)
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n[superlink.loopback]\naddress = "127.0.0.1:{link}"\n'
        f'root-certificates = "{folder / "ca.crt"}"\n',
        encoding="utf-8",
    )
    given = {"folder": folder, "environment": environment}
    with contextlib.ExitStack() as running:
        command = f"flower-superlink --host 127.0.0.1 --port {link} --database {folder}/superlink.db"
        command += f" --ssl-ca-certfile {folder}/ca.crt --ssl-certfile {folder}/server.crt"
        command += f" --ssl-keyfile {folder}/server.key --enable-supernode-auth"
        command += " --disable-runtime-dependency-installation"
        running.enter_context(started("superlink", *command.split(), **given))
        for number in range(NODES):
            flwr("supernode", "register", f"{folder}/node-{number}.pub", "loopback", tries=30, **given)
        for number, port in enumerate(ports):
            command = f"flower-supernode --superlink 127.0.0.1:{link} --root-certificates {folder}/ca.crt"
            command += f" --auth-supernode-private-key {folder}/node-{number}.key --port {port} --node-config"
            config = f'partition-id={number} path="{folder}/silo-{number}.parquet"'
            running.enter_context(started(f"node-{number}", *command.split(), config, **given))
        flwr("run", "app", "loopback", "--run-config", f'folder="{folder}" ledger="{ledger}"', **given)
        wait(**given)
    report = Report.from_json((folder / "result" / "report.json").read_text(encoding="utf-8"))
    print(f"{report.headline}\nreport: {folder}/result/report.html")
    assert report.guarantee is not None
    assert report.guarantee.epsilon <= 4.0


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "run"))
