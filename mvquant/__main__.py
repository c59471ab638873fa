"""`python -m mvquant` is the command line."""

from mvquant.cli import main

if __name__ == "__main__":
    main()
