"""Secure sums: nothing but the sum becomes known (Bonawitz et al. 2017, Bell et al. 2020)."""
