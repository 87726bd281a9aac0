"""The pages that `report`, `watch`, `compare` and `predict --page` write."""
