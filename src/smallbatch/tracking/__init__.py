"""Weights & Biases: while training, and a project as a whole."""
