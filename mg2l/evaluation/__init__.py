"""Meta-tests, representation measures, statistics and results on disk."""
