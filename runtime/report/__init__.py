"""A verification to read: HTML page, terminal tables, model card."""
