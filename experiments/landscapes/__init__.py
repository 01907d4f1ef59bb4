"""Optimizers on functions of one or two variables, where every step can be seen."""
