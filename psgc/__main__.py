"""`python -m psgc`: the same as the installed command `psgc`."""

from psgc.cli import main

if __name__ == "__main__":
    main()
