"""`python -m miniformer` is `miniformer`."""

from .cli import main

if __name__ == "__main__":
    main()
