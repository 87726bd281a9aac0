"""One run, from options to its end (paper 5)."""
