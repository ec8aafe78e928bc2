"""The Python API of ``import mg2l``: training, trained teams, results, registration."""
