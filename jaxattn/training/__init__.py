"""From text to a trained model; nothing here knows how attention works."""
