"""Putting bundles on other machines over SSH.

``connection.py`` speaks with a device through the user's own OpenSSH, ``agent.py`` is what runs there meanwhile.
``payload.py`` is what goes there, with the packages that ``wheels.py`` gets for a device without a network;
``deployment.py`` has the steps of one device in order, and ``fleet.py`` does them for many.
"""
