"""An engine: user code and MPI on the main thread, one socket on the I/O thread."""
