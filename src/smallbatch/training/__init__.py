"""Training: from a run to its rows."""
