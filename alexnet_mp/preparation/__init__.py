"""Archives and folders become a prepared set."""
