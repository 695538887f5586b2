"""Multi-label image classification in JAX and Flax: published systems on one trainer."""

__version__ = "0.1.0"
