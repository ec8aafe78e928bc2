"""MG2L: global and local task inference."""
