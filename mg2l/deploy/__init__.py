"""Exported agents and how they are cut out of a team."""
