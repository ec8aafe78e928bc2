"""Experience as data: rollouts, transitions, the context replay."""
