"""Whoever sends and receives: one start of a broker, or a client. It may be paused, and dies once."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from streamq.model.batches import Batch
from streamq.model.messages import Message
from tests.sim.tier1.network import Connection

if TYPE_CHECKING:
    from tests.sim.tier1.world import World

__all__ = ["Endpoint", "Inbox", "Steps", "Task", "Wait"]

Resume = Callable[[Any], None]
Wait = Callable[[Resume], None]
"""What a task waits for: called with what resumes it."""
Steps = Generator[Wait, Any, Any]


class Endpoint:
    """Nothing happens at one that is not alive; what happens at a paused one waits in `backlog` and happens at once when it goes on."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self.backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.wants_flush = False

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self.world.after(delay_s, self, call, *args)

    def spawn(self, steps: Steps) -> "Task":
        return Task(self, steps)

    def sleep(self, delay_s: float) -> Wait:
        return lambda resume: self.world.after(delay_s, self, resume, None)

    # --- what a subclass does with its mail

    def receive(self, connection: Connection, message: Message, batches: Sequence[Batch], number: int) -> None:
        """Sent by who dialled; `number` is 0 for one-way messages."""
        raise NotImplementedError

    def told(self, connection: Connection, message: Message, batches: Sequence[Batch]) -> None:
        """Sent one way by whom this one dialled."""
        raise NotImplementedError

    def lost(self, connection: Connection) -> None:
        """The connection, dialled here or there, has ended."""

    def flush(self) -> None:
        """Ends each step in which `wants_flush` was set."""


class Task:
    """Runs a generator that yields what it waits for. It ends silently with its endpoint; `finally` runs when it is cancelled."""

    __slots__ = ("_early", "_endpoint", "_is_running", "_steps", "_turn", "is_over")

    def __init__(self, endpoint: Endpoint, steps: Steps) -> None:
        self._endpoint = endpoint
        self._steps = steps
        self._turn = 0
        self._is_running = False
        self._early: tuple[Any] | None = None
        self.is_over = False
        self._go_on(None)

    def cancel(self) -> None:
        self.is_over = True
        if not self._is_running:
            self._steps.close()

    def _go_on(self, value: Any) -> None:
        self._is_running = True
        while not self.is_over:
            try:
                wait = self._steps.send(value)
            except StopIteration:
                self.is_over = True
                break
            self._early = None
            self._turn += 1
            wait(self._resumer(self._turn))
            if self._early is None:
                break
            value = self._early[0]
        self._is_running = False

    def _resumer(self, turn: int) -> Resume:
        """Whichever of several things comes first resumes the task; the others come too late."""

        def resume(value: Any) -> None:
            if turn != self._turn or self.is_over or not self._endpoint.is_alive:
                return
            if self._is_running:
                if self._early is None:
                    self._early = (value,)
                return
            self._turn += 1
            self._go_on(value)

        return resume


class Inbox:
    """Messages for one task."""

    __slots__ = ("_resume", "items")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._resume: Resume | None = None

    def put(self, item: Any) -> None:
        self.items.append(item)
        resume, self._resume = self._resume, None
        if resume is not None:
            resume(None)

    def wait(self, endpoint: Endpoint | None = None, timeout_s: float | None = None) -> Wait:
        """Until there is something, or until the time is over."""

        def wait(resume: Resume) -> None:
            if self.items:
                resume(None)
                return
            self._resume = resume
            if timeout_s is not None and endpoint is not None:
                endpoint.after(timeout_s, resume, None)

        return wait
