"""The task of `benchmarks.federated.speed` by pfl's simulation, in a Python of its own.

It is run as ``python by_pfl.py FILE FACTS`` and imports nothing of this project. FILE holds the events, rising by user;
a user takes as many steps on them as FACTS says, and the server averages. No update is clipped and nothing is noised,
which takes less time. It prints the median seconds of a round, the first left out.
"""

import json
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found, unused-ignore]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found, unused-ignore]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found, unused-ignore]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found, unused-ignore]
from pfl.data.dataset import Dataset  # type: ignore[import-not-found, unused-ignore]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found, unused-ignore]
from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found, unused-ignore]
from pfl.hyperparam import NNTrainHyperParams  # type: ignore[import-not-found, unused-ignore]
from pfl.metrics import Metrics  # type: ignore[import-not-found, unused-ignore]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found, unused-ignore]
from torch import nn


class Network(nn.Module):
    """The table of items and the tower, as `benchmarks.federated.speed.ItemNetwork` has them."""

    def __init__(self, facts: dict) -> None:  # type: ignore[type-arg]
        super().__init__()
        self.table = nn.Embedding(facts["items"], facts["dim"])
        self.tower = nn.Sequential(nn.Linear(facts["dim"], facts["hidden"]), nn.ReLU(), nn.Linear(facts["hidden"], 1))

    def loss(self, items: torch.Tensor, engaged: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of a user's events."""
        return nn.functional.binary_cross_entropy_with_logits(self.tower(self.table(items))[:, 0], engaged)

    def metrics(self, items: torch.Tensor, engaged: torch.Tensor) -> dict[str, float]:
        """Returns nothing: nothing is evaluated."""
        return {}


class Clock(TrainingProcessCallback):  # type: ignore[misc, unused-ignore]
    """Notes when each round ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
        """Notes the time."""
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main(path: str, facts: dict) -> None:  # type: ignore[type-arg]
    """Print what a round took."""
    torch.set_num_threads(1)
    found = np.load(path)
    starts = np.searchsorted(found["units"], np.arange(facts["users"] + 1))
    items, engaged = torch.from_numpy(found["items"]), torch.from_numpy(found["engaged"])

    def events(user: int) -> Dataset:
        mine = slice(starts[user], starts[user + 1])
        return Dataset(raw_data=[items[mine], engaged[mine]])

    network, clock = Network(facts), Clock()
    users = FederatedDataset(events, get_user_sampler("random", range(facts["users"])))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=facts["rounds"],
            evaluation_frequency=facts["rounds"] + 1,
            train_cohort_size=facts["cohort"],
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=facts["steps"], local_learning_rate=facts["lr"], local_batch_size=None
        ),
        callbacks=[clock],
    )
    print(json.dumps({"seconds": float(np.median(np.diff(clock.ends)))}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
