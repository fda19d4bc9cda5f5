"""Faults that would break a promise, planted one at a time, and which audit or check sees each."""
