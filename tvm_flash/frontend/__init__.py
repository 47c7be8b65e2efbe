"""The functions users call, and the torch operators under them."""
