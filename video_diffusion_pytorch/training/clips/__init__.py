"""Clips become batches: their order, what is random about them, and what is told of them."""
