"""Who is told of a pool's events: a set of observers that changes while the pool is open."""

from collections.abc import Callable, Iterable

from postroom.events import Event, Observer, Observers


class Subscribers:
    """Observers that come and go. False when there are none."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = Observers(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tell one more observer. Returns what ends that; calling it twice does nothing more."""
        # An object of its own for each call: the same function may subscribe twice, and leave once.
        told = [observer]

        def tell(event: Event) -> None:
            for each in tuple(told):
                each(event)

        def leave() -> None:
            told.clear()
            self._observers = Observers(other for other in self._observers if other is not tell)

        self._observers = Observers((*self._observers, tell))
        return leave

    def tell(self, event: Event) -> None:
        """Tell every observer. What one raises is logged; the others are told all the same."""
        self._observers.tell(event)
