"""Peers: other libraries on the same flags, each on its own native documents, side by side.

Each runs in a process of its own, without network, and takes turns with flagkit there. Nothing is
installed: what cannot be imported is said to be missing (`pip install -e '.[bench-peers]'` brings
all of them). Before anything is timed, answers are held to flagkit's, and shares to their
percentages, so that no broken set-up is compared.
"""
