"""What a network is made of: units that are removed whole, their costs, and the surgery."""
