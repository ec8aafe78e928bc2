"""Algorithms: the latents that actors and critics are conditioned on, and how they are learned."""
