"""The oracle, which is given the task."""
