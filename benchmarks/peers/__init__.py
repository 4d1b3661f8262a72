"""One step of a language model in every runtime that a user might pick instead: ``python -m benchmarks.peers``.

Each peer runs in a worker process, most in a virtual environment of their own. So the modules that a worker imports
(``worker``, ``network`` and the peers) need NumPy and the peer's own packages, nothing else.
"""
