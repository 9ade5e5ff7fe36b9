"""What a client draws and how it is undone: exact probabilities, unbiased estimates."""
