"""Pictures that mean the same (paper 6.1)."""
