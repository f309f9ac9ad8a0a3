"""Exercises: fill in the steps of attention, and be told which mistake was made. Start with `command.py`."""
