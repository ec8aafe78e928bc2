"""Configuration: the sections of a run, algorithms by name, files."""
