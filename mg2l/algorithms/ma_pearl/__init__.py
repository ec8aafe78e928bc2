"""MA-PEARL."""
