"""The reference's parameter names and legacy helpers."""
