"""The task of `benchmarks.federated.speed` by Flower on Ray with a node for each user, in a Python of its own.

It is run as ``python by_flower.py FILE FACTS`` and imports nothing of this project. FILE holds the events, rising by
user; its nodes take as many steps on them as FACTS says and send the whole model; the server averages. No update is
clipped and nothing is noised, which takes less time. It prints the median seconds of a round, the first left out, in
which Ray's processes start.
"""

import functools
import importlib
import json
import sys
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

client = ClientApp()


class Network(nn.Module):
    """The table of items and the tower, as `benchmarks.federated.speed.ItemNetwork` has them."""

    def __init__(self, facts: dict) -> None:  # type: ignore[type-arg]
        super().__init__()
        self.table = nn.Embedding(facts["items"], facts["dim"])
        self.tower = nn.Sequential(nn.Linear(facts["dim"], facts["hidden"]), nn.ReLU(), nn.Linear(facts["hidden"], 1))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the logit of each event."""
        logits: torch.Tensor = self.tower(self.table(items))
        return logits[:, 0]


@functools.cache
def events(path: str, users: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns where each user's events begin, their items and labels; each of Ray's processes reads them once."""
    torch.set_num_threads(1)
    found = np.load(path)
    starts = np.searchsorted(found["units"], np.arange(users + 1))
    return torch.from_numpy(starts), torch.from_numpy(found["items"]), torch.from_numpy(found["engaged"])


@client.train()
def train(message: Message, context: Context) -> Message:
    """Returns the model after a user's steps."""
    config = message.content.config_records["config"]
    facts = json.loads(str(config["facts"]))
    starts, items, engaged = events(str(config["path"]), facts["users"])
    user = int(context.node_config["partition-id"])
    mine = slice(int(starts[user]), int(starts[user + 1]))
    network = Network(facts)
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=facts["lr"])
    for _ in range(facts["steps"]):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(network(items[mine]), engaged[mine])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)


def main(path: str, text: str) -> None:
    """Print what a round took; fails where a user did not answer."""
    facts, ends = json.loads(text), [time.perf_counter()]
    server = ServerApp()

    def counted(answers: list[RecordDict], _: str) -> MetricRecord:
        ends.append(time.perf_counter())
        if len(ends) > 2 and len(answers) != facts["cohort"]:  # the first round begins before all nodes are there
            sys.exit(f"of {facts['cohort']} users {len(answers)} answered")
        return MetricRecord({"users": len(answers)})

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=facts["cohort"] / facts["users"],
            fraction_evaluate=0.0,
            min_available_nodes=facts["users"],
            train_metrics_aggr_fn=counted,
        )
        config = ConfigRecord({"path": path, "facts": text})
        initial = ArrayRecord(Network(facts).state_dict())
        strategy.start(grid, initial, num_rounds=facts["rounds"], train_config=config)

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": facts["cores"]}}
    run_simulation(server, client, num_supernodes=facts["users"], backend_config=resources)
    if len(ends) != facts["rounds"] + 1:
        sys.exit(f"of {facts['rounds']} rounds {len(ends) - 1} were counted")
    print(json.dumps({"seconds": float(np.median(np.diff(ends)[1:]))}))


if __name__ == "__main__":
    # imported by its name, Ray's processes find it by name too, and keep what they have read
    importlib.import_module("by_flower").main(*sys.argv[1:])
