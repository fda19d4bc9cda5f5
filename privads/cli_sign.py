"""The command line's verbs about who vouches for a report: `privads report key`, `sign` and `verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privads.cli_budget import CONTRADICTED, Json, print_json

if TYPE_CHECKING:
    from accounting.report.record import Report

Run = Annotated[Path, typer.Argument(help="A run folder.")]


def key(
    out: Annotated[Path, typer.Option(help="The private key's file; the public one goes beside it as NAME.pub.pem.")],
    as_json: Json = False,
) -> None:
    """Make a pair of Ed25519 keys to sign reports with. The private one is readable by you alone: keep it so."""
    from accounting.report.sign import make_key

    public, identity = make_key(out)
    if as_json:
        print_json({"private": str(out), "public": str(public), "key": identity})
        return
    typer.echo(
        f"private key: {out}, keep it secret\npublic key:  {public}, give it to whoever verifies\nkey id: {identity}"
    )


def sign(
    run: Run,
    key: Annotated[Path, typer.Option(help="A private Ed25519 key in PEM, as `privads report key` makes one.")],
    as_json: Json = False,
) -> None:
    """Sign a run folder: its report, page and model, as they are, in a file report.json.sig beside them."""
    from accounting.report.sign import SIGNATURE
    from accounting.report.sign import sign as write

    made = write(run, key)
    if as_json:
        print_json({"signature": str(run / SIGNATURE), "key": made.key, "files": sorted(made.files)})
        return
    typer.echo(f"signed {', '.join(sorted(made.files))} with key {made.key}: {run / SIGNATURE}")


def verify(
    run: Run,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="Whose signature it must be; without it, anybody's will do."),
    ] = None,
    ledger: Annotated[
        str | None, typer.Option("--ledger", help="Also check that this ledger holds the run, and the head it noted.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a run folder is as it was signed, and that the ledger bears its report out; exit 4 if not."""
    from accounting.report.sign import NotVerified

    try:
        found = _verified(run, public_key, ledger)
    except NotVerified as error:
        typer.echo(f"privads: not verified: {error}", err=True)
        raise typer.Exit(CONTRADICTED) from None
    if as_json:
        print_json(found)
        return
    whose = f"by {public_key}" if public_key else "but whose key that is was not checked: give --public-key"
    typer.echo(f"signature: good, {whose}; key id {found['key']}")
    absent = f"; signed, but not here: {', '.join(found['missing'])}" if found["missing"] else ""
    typer.echo(f"files:     {', '.join(found['files'])} are as they were signed{absent}")
    entry = found["ledger"]
    if entry is None:
        typer.echo("ledger:    not checked: give --ledger")
    else:
        typer.echo(
            f"ledger:    {entry['url']} is unbroken and holds the run as entry {entry['entry']} ({entry['state']}), "
            f"with its event and figures; the report's head is its row {entry['head_row']} of {entry['rows']}"
        )
    typer.echo(found["headline"])


def _verified(run: Path, public_key: Path | None, ledger: str | None) -> dict[str, Any]:
    """Returns what was checked, as plain data; raises `NotVerified`."""
    from accounting.report.sign import verify
    from privads.cli_report import read_report

    signature, missing = verify(run, public_key=public_key)
    report = read_report(run)
    return {
        "key": signature.key,
        "key_checked": public_key is not None,
        "files": sorted(set(signature.files) - set(missing)),
        "missing": list(missing),
        "ledger": None if ledger is None else _in_ledger(report, ledger),
        "headline": report.headline,
    }


def _in_ledger(report: "Report", url: str) -> dict[str, Any]:
    from accounting.ledger import Ledger, LedgerError
    from accounting.report.anchor import NotAnchored, find_entries
    from accounting.report.sign import NotVerified

    book = Ledger.open(url)  # one that is not there is bad input
    try:
        whole = book.read()
        entry = find_entries(report, whole)[0]
    except (LedgerError, NotAnchored) as error:
        raise NotVerified("ledger", str(error)) from None
    head = "" if report.budget is None else report.budget.head
    return {
        "url": whole.shown,
        "entry": entry.id,
        "state": entry.state,
        "head_row": whole.rows[head],
        "rows": len(whole.rows),
    }
