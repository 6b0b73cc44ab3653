"""What looks at runs and machines from outside: reports, comparisons, psgc doctor."""
