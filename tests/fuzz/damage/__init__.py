"""Damage to one file, of any kind: each function takes bytes and a generator and gives bytes."""
