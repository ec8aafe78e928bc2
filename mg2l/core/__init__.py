"""Foundations: the schema of keys, untrusted files, optional packages."""
