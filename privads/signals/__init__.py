"""Aggregates of a log that are protected by noise."""
