"""The files of a training run: one whole or not at all, which are kept, and which is the last."""
