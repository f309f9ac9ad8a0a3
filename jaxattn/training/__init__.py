"""Train a GPT: from text to a saved model; nothing here knows how attention works.

To read it in order: `config`, `text`, `batches`, `step`, `run`; the other files are what `run` calls.
"""
