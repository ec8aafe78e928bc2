"""Exported agents, and how they are sliced out of a team."""
