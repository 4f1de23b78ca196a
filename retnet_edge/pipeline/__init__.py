"""What joins the rooms: build, verify, info."""
