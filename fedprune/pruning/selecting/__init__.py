"""Which units stay under budgets of units, weights, operations and time."""
