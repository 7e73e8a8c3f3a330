"""Commands of `mmtune`; they may import every other package, and no other package imports them."""
