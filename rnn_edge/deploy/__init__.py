"""Putting bundles on other machines over SSH.

``connection.py`` speaks with a device through the user's own OpenSSH, ``agent.py`` is what runs there meanwhile,
``wheels.py`` gets a device's packages for it, and ``deployment.py`` puts the steps in order.
"""
