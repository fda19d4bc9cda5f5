"""Releases, attribution and learning from reports, measured."""
