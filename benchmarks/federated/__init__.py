"""How fast, in what memory, at which epsilon and how well users train: `python -m benchmarks.federated`."""
