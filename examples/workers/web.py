"""A web service of several processes.

    export FLAGKIT_URI='mongodb://localhost/?replicaSet=rs0' FLAGKIT_ENVIRONMENT=production
    gunicorn --preload --workers 4 web:application

With `--preload` this module is imported once, in the master; the workers are forked from it, and
each goes on by itself from the flags that the master has.
"""

import json
import os
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import flagkit

flagkit.configure()


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer which picture a visitor sees, and which worker said so."""
    hero = flagkit.evaluate("home.hero", environ["REMOTE_ADDR"], default="product")
    answer = {"worker": os.getpid(), "hero": hero.value, "revision": hero.revision}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
