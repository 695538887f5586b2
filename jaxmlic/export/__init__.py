"""A run as a bundle that jax alone can run, and the proof that both predict the same."""

from jaxmlic.export.bundle import Bundle, check_folder, read, write
from jaxmlic.export.verify import Verification, verify

__all__ = ["Bundle", "Verification", "check_folder", "read", "verify", "write"]
