"""Algorithms: what actors and critics are conditioned on, and how that is learned."""
