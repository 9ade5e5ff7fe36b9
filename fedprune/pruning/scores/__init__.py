"""What removing a unit would cost: criteria, passes over many clients, the exact answer."""
