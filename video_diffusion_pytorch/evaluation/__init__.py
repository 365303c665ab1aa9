"""Evaluation of samples: scores, and results with their protocol."""
