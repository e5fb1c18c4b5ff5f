"""`python -m kai …` is `kai …`."""

from kai.cli.main import main

main()
