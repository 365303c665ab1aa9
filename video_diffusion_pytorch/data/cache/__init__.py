"""Clips decoded once, on the disk, shared by all processes that train on them."""
