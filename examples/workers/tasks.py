"""Tasks that ask for flags, in the processes of Celery's prefork pool.

    export FLAGKIT_URI='mongodb://localhost/?replicaSet=rs0' FLAGKIT_ENVIRONMENT=production
    celery --app tasks worker --concurrency 4

The worker imports this module once; the processes of its pool are forked from it, and each goes on
by itself from the flags that the worker has. The broker is named in `celeryconfig.py`.
"""

import os
from typing import Any

from celery import Celery

import flagkit

app = Celery("shop")
app.config_from_object("celeryconfig")
flagkit.configure()


@app.task(name="shop.hero")
def hero(visitor: str) -> dict[str, Any]:
    """Return which picture a visitor sees, and which process said so."""
    found = flagkit.evaluate("home.hero", visitor, default="product")
    return {"worker": os.getpid(), "hero": found.value, "revision": found.revision}
