"""How pruning goes over time: steps, learning rates, going back and growing again."""
