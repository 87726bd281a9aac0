"""The two towers and what crosses between them (paper 3)."""
