"""Functions on engines call plain mpi4py: a number goes round all ranks, and each adds its own."""

import hpcviews


def send_round() -> tuple[int, int]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    total = comm.sendrecv(comm.rank, dest=(comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size)
    return comm.rank, comm.allreduce(total)


with hpcviews.Client() as rc:
    for rank, total in rc[:].apply_sync(send_round):
        print(f"rank {rank}: the ring adds up to {total}")
