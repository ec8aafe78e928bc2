"""Algorithms: policies, PPO, and what each algorithm tells actors and critics of the task."""
