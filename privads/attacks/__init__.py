"""Attacks on what this library releases: they make scores, and `accounting.audit` says what those prove."""
