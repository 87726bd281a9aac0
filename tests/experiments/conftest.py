"""Claims of toy size, on data of their own."""

from claim_runs import data, no_pictures  # noqa: F401  (fixtures)
