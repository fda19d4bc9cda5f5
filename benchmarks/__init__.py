"""Side-by-side measurements: each is `python -m benchmarks.NAME --json`, its last line of stdout one JSON object."""
