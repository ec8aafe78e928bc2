"""RL^2 with a transformer."""
