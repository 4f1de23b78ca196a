"""The verdict on a verification, and what is read of it: HTML page, tables, model card."""
