"""A small simulated shop for the demo to profile.

- A hot function: `PriceList.discounted` in the thread ``shop-pricing``, which a flame graph shows at once.
- A slow leak: `Cart` objects that `Checkout` never removes, about 20 per second; a comparison of two heap snapshots
  shows it.
- Periodic garbage: `Parcel` and `Label` refer to each other, so only the collector frees them.
- Threads that mostly wait: ``shop-customers``, ``shop-checkout``, ``shop-warehouse``.

It uses a fifth of a core, or slightly more.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Final

_BEAT_SECONDS: Final = 0.05
_PRICING_SHARE: Final = 0.15
_PARCELS: Final = 50


class Product:
    """A product in the shop; `price` is in cents."""

    def __init__(self, name: str, price: int) -> None:
        self.name = name
        self.price = price


class Line:
    """A product and how many of it are bought."""

    def __init__(self, product: Product, count: int) -> None:
        self.product = product
        self.count = count


class Cart:
    """The products that a customer buys."""

    def __init__(self, customer: str, lines: list[Line]) -> None:
        self.customer = customer
        self.lines = lines


class Parcel:
    """A parcel that leaves the warehouse; the parcel and its label refer to each other."""

    def __init__(self, cart: Cart) -> None:
        self.content = [line.product.name for line in cart.lines]
        self.label = Label(self, cart.customer)


class Label:
    def __init__(self, parcel: Parcel, address: str) -> None:
        self.parcel = parcel
        self.address = address


class PriceList:
    """Computes prices, more slowly than it could."""

    def __init__(self, products: list[Product]) -> None:
        self._products = products
        self._rounds = 1

    def update(self, seconds: float) -> None:
        """Compute for `seconds` of CPU time, by the cost of the last update.

        The clock is read at the beginning and the end only: a busy system interrupts a thread most often in a system
        call, and this function would be seen there instead of the hot one.
        """
        began = time.thread_time()
        for _ in range(self._rounds):
            for product in self._products:
                self.discounted(product)
                self.taxed(product)
        spent = time.thread_time() - began
        self._rounds = max(1, int(self._rounds * min(2.0, seconds / max(spent, 1e-6))))

    def discounted(self, product: Product) -> int:
        """Add up a discount cent by cent; this is the hot function."""
        price = product.price
        for step in range(400):
            price -= (price * step) % 7 == 0
        return price

    def taxed(self, product: Product) -> int:
        price = product.price
        for step in range(100):
            price += (price + step) % 5 == 0
        return price


class Checkout:
    """Takes carts, and keeps a history that is never shortened, which is the leak."""

    def __init__(self) -> None:
        self.history: list[Cart] = []
        self.waiting: queue.SimpleQueue[Cart | None] = queue.SimpleQueue()

    def serve(self, ship: Callable[[Cart], None]) -> None:
        while (cart := self.waiting.get()) is not None:
            self.history.append(cart)
            ship(cart)


class Warehouse:
    """Packs parcels, and drops them as reference cycles."""

    def __init__(self) -> None:
        self._shelf: list[Parcel] = []

    def ship(self, cart: Cart) -> None:
        self._shelf.extend(Parcel(cart) for _ in range(_PARCELS))

    def clear(self) -> None:
        self._shelf = []


class Shop:
    """The shop, and the functions that its threads run."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._random = random.Random(2026)  # noqa: S311 - the same shop each time
        self._products = [Product(f"product {number}", 100 + 37 * number) for number in range(50)]
        self.prices = PriceList(self._products)
        self.checkout = Checkout()
        self.warehouse = Warehouse()

    def shopping(self) -> None:
        """Fill a cart every beat."""
        while not self._stop.wait(_BEAT_SECONDS):
            chosen = self._random.choices(self._products, k=self._random.randint(1, 6))
            cart = Cart(f"customer {self._random.randint(1, 999)}", [Line(product, 1) for product in chosen])
            self.checkout.waiting.put(cart)
        self.checkout.waiting.put(None)

    def pricing(self) -> None:
        """Compute for a share of each beat."""
        while not self._stop.wait(_BEAT_SECONDS * (1 - _PRICING_SHARE)):
            self.prices.update(_BEAT_SECONDS * _PRICING_SHARE)

    def serving(self) -> None:
        self.checkout.serve(self.warehouse.ship)

    def clearing(self) -> None:
        """Drop the parcels every two seconds."""
        while not self._stop.wait(2.0):
            self.warehouse.clear()


def run(stop: threading.Event) -> None:
    """Run the shop until `stop` is set, and return when its threads have ended. Any thread."""
    shop = Shop(stop)
    work = {
        "shop-customers": shop.shopping,
        "shop-pricing": shop.pricing,
        "shop-checkout": shop.serving,
        "shop-warehouse": shop.clearing,
    }
    threads = [threading.Thread(target=function, name=name, daemon=True) for name, function in work.items()]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()
