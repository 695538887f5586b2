"""Text and files of `jaxmlic compare` and `jaxmlic thresholds`."""
