"""Flax models: trunks turn images into feature maps, heads turn feature maps into label scores."""
