"""`python -m isoloss`."""

from isoloss.cli import main

main()
