"""What a machine with a GPU must tell of this installation: `stages.py` says what, `check.py` runs it."""
