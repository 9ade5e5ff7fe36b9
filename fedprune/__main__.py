"""`python -m fedprune` is the command line."""

from fedprune.cli import main

main()
