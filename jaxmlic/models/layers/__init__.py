"""Layers that trunks and heads are built from."""
