"""Data sets as arrays in memory or image files, and the blocks of mini-batches that training consumes."""

from smallbatch.data.arrays import Description, Images, Split, describe, load, load_images, notice, published

__all__ = ["Description", "Images", "Split", "describe", "load", "load_images", "notice", "published"]
