"""variBAD."""
