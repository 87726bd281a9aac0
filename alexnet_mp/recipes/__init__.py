"""Every number of the paper's experiments."""
