"""Grids: from a command line to runs, their price, and their training."""
