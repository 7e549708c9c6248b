"""Neighbours of hidden states, and the intrinsic dimensions estimated from them."""
