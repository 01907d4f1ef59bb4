"""Mirroring runs into wandb."""
