"""Signatures first; bodies follow."""

from collections.abc import Callable

from streamq.model.messages import Message
from streamq.model.registers import Voters
from streamq.storage.interface import Storage


class Durable:
    """The token of a storage write: the broker's `on_durable` calls it (`token()`) once the write is durable."""

    def __call__(self) -> None: ...


class LocalAcceptor:
    """This broker's acceptor over its storage: answers Prepare, Accept, ReadAccepted, ListKeys, ReadVoters, AdoptVoters, VotersReady."""

    def __init__(self, storage: Storage, *, new_incarnation: Callable[[], bytes]) -> None: ...

    @property
    def broker(self) -> str: ...

    @property
    def voters(self) -> Voters:
        """The newest configuration adopted here."""

    async def answer(self, message: Message) -> Message:
        """The answer (perhaps a `Failure`), once what it says is durable. Cancelling it loses the answer only."""

    def submit(self, message: Message, reply: Callable[[Message], None]) -> None:
        """As `answer`, without a task: `reply` is called now or when the write is durable."""
