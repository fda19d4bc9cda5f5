"""Transforms from a log's columns to a model's inputs."""
