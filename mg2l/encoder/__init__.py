"""The multi-level task encoder and what it is trained for."""
