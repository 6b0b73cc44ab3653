"""What a run writes: the files of its directory, progress, the summary, and what loggers get."""
