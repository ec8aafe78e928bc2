"""What everything stands on: the schema of keys, untrusted files, optional packages."""
