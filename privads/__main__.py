"""`python -m privads`: the command line, where its script is not on the path."""

from privads.cli import main

main()
