"""MATE."""
