"""What things cost and how exact they are: `python -m experiments.benchmarks.NAME`."""
