"""`psgc doctor`: tests this machine, and says what a run on it would survive."""
