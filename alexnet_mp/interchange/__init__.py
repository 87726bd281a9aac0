"""Networks that were made elsewhere."""
