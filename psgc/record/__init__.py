"""What a run writes: the files in its directory, progress lines, the summary, and values for loggers."""
