"""Sends runs to a Slurm cluster, or to this machine, through submitit."""
