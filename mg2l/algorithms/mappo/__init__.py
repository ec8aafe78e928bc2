"""MAPPO, which knows nothing about the task."""
