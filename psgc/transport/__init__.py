"""MPI during a run: no other part of psgc sends or receives messages then.

`psgc.mpi_start` imports mpi4py and starts MPI. Outside of a run `psgc.rendezvous`, `psgc.run.meeting`,
`psgc.run.session` and `psgc.launching.rank` use MPI, too.

* One thread of each process makes all its MPI calls.
* Receives are posted before senders need them. These buffers are all the memory that a receiver spends.
* Sends are Isend. Their buffers are kept until MPI is done with them. MPI counts bytes with 32 bits, so a larger
  message is one item that consists of blocks (`psgc.rendezvous.in_bytes`).
* A waiting process polls MPI a few times and then sleeps, since Open MPI's blocking calls would burn a core per rank.

Under fault-tolerant MPI (`mpirun --with-ft ulfm`) ranks may die. `Transport.poll` returns what has arrived from a rank,
then `Died`, then nothing from it any more. Sends to it are dropped. Another process may then be rank 0 (`Term`).
"""

from psgc.transport.host_memory import Shared as Shared
from psgc.transport.pauses import Pause as Pause
from psgc.transport.receives import Control as Control
from psgc.transport.receives import Died as Died
from psgc.transport.receives import Message as Message
from psgc.transport.receives import Text as Text
from psgc.transport.receives import Vector as Vector
from psgc.transport.sends import SMALL as SMALL
from psgc.transport.sends import Sending as Sending
from psgc.transport.terms import Term as Term
from psgc.transport.transport import TEXT_LIMIT as TEXT_LIMIT
from psgc.transport.transport import Transport as Transport
from psgc.transport.waiting import LARGE as LARGE
