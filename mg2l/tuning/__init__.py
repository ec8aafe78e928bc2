"""Hyperparameter search: space, proposals, schedulers, journal and summary."""
