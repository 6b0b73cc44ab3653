"""`psgc doctor`: what this machine gives, and what a run here will survive."""
