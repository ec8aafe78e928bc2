"""FOCAL."""
