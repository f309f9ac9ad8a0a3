"""Models built from the stages."""
