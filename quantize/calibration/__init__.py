"""What a graph sees on text: statistics of the inputs of its matrix products."""
