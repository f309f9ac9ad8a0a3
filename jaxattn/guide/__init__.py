"""The four stages made visible: every intermediate by name, as figures, and as a page."""
