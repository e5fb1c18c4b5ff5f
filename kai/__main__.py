"""`python -m kai …` is `kai …`."""

from kai.cli.entry import main

main()
