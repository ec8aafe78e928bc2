"""CORRO."""
