"""Tools that examine runs and machines from outside: reports, comparisons, psgc doctor."""
