"""Starts the benchmark."""

import typer

from benchmarks.federated.command import main

typer.run(main)
