"""What a session is, and what every backend's needs of the machine: threads, heap, pages."""
