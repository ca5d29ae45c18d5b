"""`python -m fastkd`."""

from fastkd.cli import main

main()
