"""A static page that runs a bundle in the visitor's browser. ``site`` makes it, ``assets`` is what it is made of."""
