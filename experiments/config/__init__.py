"""The configuration of an experiment: its schema, its YAML, its signature."""
