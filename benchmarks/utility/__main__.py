"""Starts the benchmark."""

import torch
import typer

from benchmarks.utility.command import main

torch.set_num_threads(1)  # the batches are small: more threads cost more than they do
typer.run(main)
