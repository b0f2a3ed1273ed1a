"""`python -m miniformer` is `miniformer`."""

from miniformer.cli import main

if __name__ == "__main__":
    main()
