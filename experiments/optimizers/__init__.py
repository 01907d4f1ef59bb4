"""Optimizers that benchmarks need as rows and that no package has in a form that a row can name."""

from experiments.optimizers.muon_adamw import MuonAdamW

__all__ = ["MuonAdamW"]
