"""What privacy costs in prediction, on every public data set at hand: `python -m benchmarks.utility`."""
