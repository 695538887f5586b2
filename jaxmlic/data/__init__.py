"""Data: builders, the host pipeline, device augmentation, labels."""
