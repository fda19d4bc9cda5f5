"""Benchmarks of releasing signals and of learning from them."""
