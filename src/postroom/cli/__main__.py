"""``python -m postroom.cli``."""

from postroom.cli import main

if __name__ == "__main__":
    main()
