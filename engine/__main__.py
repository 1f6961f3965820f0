"""`python -m everwrite` is the command `everwrite`."""

from everwrite.server.cli import main

if __name__ == "__main__":
    main()
