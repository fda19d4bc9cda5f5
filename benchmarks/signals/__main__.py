"""Starts the benchmark."""

import torch
import typer

from benchmarks.signals.command import main

torch.set_num_threads(1)  # the figures are of one core but where DuckDB has two
typer.run(main)
