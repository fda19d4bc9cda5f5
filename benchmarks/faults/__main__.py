"""Starts the suite."""

import torch
import typer

from benchmarks.faults.command import main

torch.set_num_threads(1)
typer.run(main)
