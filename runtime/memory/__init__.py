"""Does memory stay constant? Bytes a token of a process that runs the bundle."""
