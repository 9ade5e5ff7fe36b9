"""What is made of the estimates: priors, phases, hostile clients, planning."""
