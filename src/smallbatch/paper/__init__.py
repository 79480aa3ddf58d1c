"""What the paper shows: its figures, drawn from the run table."""
