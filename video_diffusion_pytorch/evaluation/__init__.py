"""The step after sampling: how good the samples are."""
