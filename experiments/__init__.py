"""The harness around the optimizer: trains, records, reports. Runs from the repository."""
