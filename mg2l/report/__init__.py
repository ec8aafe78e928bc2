"""One page of HTML about runs: ``python -m mg2l.report``."""
