"""The same numbers as `functional.py` computes, sooner: one file for each implementation."""
