"""The parameter server (rank 0): coordinator, scheduler, decoder, optimizer and their MPI loop."""
