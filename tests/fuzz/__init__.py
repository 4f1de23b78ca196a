"""`make fuzz`: damaged files of every kind that retnet-edge reads, and what it says of them."""
