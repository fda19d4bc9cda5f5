"""The task of `benchmarks.federated.speed` by Flower on Ray with a node for each user, in a Python of its own.

It is run as ``python by_flower.py FILE FACTS`` and imports nothing of this project. FILE holds the events, rising by
user; its nodes take as many steps on them as FACTS says and send the whole model; the server averages. No update is
clipped and nothing is noised, which takes less time. It prints the median seconds of a round, the first left out, in
which Ray's processes start.
"""

import functools
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

PATH, FACTS = sys.argv[1], json.loads(sys.argv[2])


class Network(nn.Module):
    """The table of items and the tower, as `benchmarks.federated.speed.ItemNetwork` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(FACTS["items"], FACTS["dim"])
        self.tower = nn.Sequential(nn.Linear(FACTS["dim"], FACTS["hidden"]), nn.ReLU(), nn.Linear(FACTS["hidden"], 1))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the logit of each event."""
        logits: torch.Tensor = self.tower(self.table(items))
        return logits[:, 0]


def client(path: str, facts: dict) -> ClientApp:  # type: ignore[type-arg]
    """Returns the node's app; arguments, and no globals, travel to Ray's processes."""

    @functools.cache
    def events() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.set_num_threads(1)
        found = np.load(path)
        starts = np.searchsorted(found["units"], np.arange(facts["users"] + 1))
        return torch.from_numpy(starts), torch.from_numpy(found["items"]), torch.from_numpy(found["engaged"])

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        starts, items, engaged = events()
        user = int(context.node_config["partition-id"])
        mine = slice(int(starts[user]), int(starts[user + 1]))
        network = Network()
        network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(network.parameters(), lr=facts["lr"])
        for _ in range(facts["steps"]):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(network(items[mine]), engaged[mine])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main() -> None:
    """Print what a round took."""
    ends: list[float] = []
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        share = FACTS["cohort"] / FACTS["users"]
        strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0, min_available_nodes=FACTS["users"])

        def note(number: int, arrays: ArrayRecord) -> None:
            ends.append(time.perf_counter())

        initial = ArrayRecord(Network().state_dict())
        strategy.start(grid, initial, num_rounds=FACTS["rounds"], train_config=ConfigRecord(), evaluate_fn=note)

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": FACTS["cores"]}}
    run_simulation(server, client(PATH, FACTS), num_supernodes=FACTS["users"], backend_config=resources)
    print(json.dumps({"seconds": float(np.median(np.diff(ends)[1:]))}))


if __name__ == "__main__":
    main()
