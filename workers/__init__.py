"""The workers (ranks 1..m): state machine, compute thread, encoder and their MPI loop."""
