"""The network: from a noisy video to its prediction."""
