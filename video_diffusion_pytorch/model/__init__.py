"""The network: from a noisy video to a prediction."""
