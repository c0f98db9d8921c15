"""The demo's users: invented, and the same ones each time."""

import random
from typing import Any

from flagkit import Context

_SEED = 2026
_CITIES = {
    "DE": ("Berlin", "Hamburg", "Cologne"),
    "AT": ("Vienna", "Graz"),
    "CH": ("Zurich", "Basel"),
    "FR": ("Paris", "Lyon", "Lille"),
    "US": ("Boston", "Denver"),
}
_COUNTRY_WEIGHTS = (50, 12, 8, 20, 10)
_PLANS = ("free", "plus", "business")
_PLAN_WEIGHTS = (70, 22, 8)


def users(count: int) -> list[Context]:
    """Return `count` customers of a shop, as contexts: keys "u-00000" and up, and attributes.

    Users are the same whatever the count.
    """
    draw = random.Random(_SEED)  # noqa: S311 - invented people, no secrets
    return [_user(number, draw) for number in range(count)]


def _user(number: int, draw: random.Random) -> Context:
    country = draw.choices(tuple(_CITIES), _COUNTRY_WEIGHTS)[0]
    plan = draw.choices(_PLANS, _PLAN_WEIGHTS)[0]
    staff = draw.random() < 0.01  # noqa: PLR2004 - one in a hundred
    key = f"u-{number:05}"
    attributes: dict[str, Any] = {
        "country": country,
        "city": draw.choice(_CITIES[country]),
        "plan": plan,
        "staff": staff,
        "email": f"{key}@{'shop' if staff else 'mail'}.example",
        "age": draw.randint(16, 90),
        "orders": int(draw.expovariate(0.4)),
        "app_build": draw.randint(2000, 2600),
    }
    if draw.random() < 0.03:  # noqa: PLR2004 - three in a hundred
        attributes["risk"] = "high"
    if plan == "business":
        contract = "legacy" if draw.random() < 0.2 else "standard"  # noqa: PLR2004 - one in five
        attributes["company"] = {"id": f"c-{draw.randrange(200):03}", "contract": contract}
    return Context(key, attributes)
