"""From a file on disk to a clip in memory, and back."""
