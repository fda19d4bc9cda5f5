"""What the server and its nodes must have alike: a node compares it with what it is asked, and answers nothing else."""

import torch

from accounting.budget import Budget
from federation import FederatedPlan, Task
from privads.logs.schema import Schema
from privads.logs.simulator import schema_toml
from privads.models import Logistic

NODES = 2
USERS = 4_000

SCHEMA = Schema.parse(schema_toml(USERS), source="the simulator")

PLAN = FederatedPlan(
    budget=Budget(epsilon=4.0, delta=1e-5, unit="user"),  # a plan that costs more cannot be made
    population=USERS,
    cohort=800,
    rounds=2,
    clip_norm=0.5,
    noise_multiplier=1.0,
)


def task() -> Task:
    """Returns what every user trains."""
    torch.manual_seed(0)
    return Task(model=Logistic(SCHEMA), local_learning_rate=0.5, local_steps=2)
