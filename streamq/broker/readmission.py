"""Signatures first; bodies follow."""

from collections.abc import Callable, Sequence

import trio

from streamq.broker.local_acceptor import LocalAcceptor
from streamq.broker.registers import Registers, Request
from streamq.model.messages import Rejoin, VotersView
from streamq.model.registers import BrokerRegister


class Readmissions:
    """Carries re-admissions out for other brokers (P-40)."""

    def __init__(self, *, registers: Registers, local: LocalAcceptor, request: Request, nursery: trio.Nursery) -> None: ...

    async def on_rejoin(self, message: Rejoin) -> VotersView:
        """The router awaits it for a `Rejoin` and sends the answer. Raises StreamqError (not_ready, unavailable): the broker asks again."""


async def join_cluster(
    *, registers: Registers, local: LocalAcceptor, request: Request, register: BrokerRegister, bootstrap: Callable[[], Sequence[str]]
) -> BrokerRegister:
    """Awaited once at each start, before the broker serves: proves that the directory is not an older copy or in use elsewhere (P-31), has the
    acceptor admitted where that is needed (P-40), registers `broker/<id>` and `cluster`. Retries for ever while too few voters can be reached.

    The router must already answer requests for the local acceptor while this runs (all brokers start at once).
    Raises AlreadyExistsError (wrong_directory, wrong_cluster): the broker must stop with that message.
    `bootstrap`: names of brokers to ask besides the voters.
    """
