"""`python -m hostagent.cli`: the same as the console script `replctl`."""

from hostagent.cli import main

main()
