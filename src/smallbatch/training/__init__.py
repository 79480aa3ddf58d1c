"""One run from its config to its run folder."""

from smallbatch.training.run import train

__all__ = ["train"]
