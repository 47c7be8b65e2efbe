"""Cases of Hopper."""
