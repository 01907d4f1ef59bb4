"""Trainings in other frameworks than PyTorch."""
