"""The exercises, each a file with its solution, which is left out of what learners get (`catalog.py`)."""
