"""`python -m psgc`: the same as the installed command `psgc`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current directory: a numpy.py there is not what psgc means
    from psgc.cli import main

    main()
