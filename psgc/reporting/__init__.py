"""The record of a run: its directory, live progress, and the summary at the end."""
