"""What exporting and quantizing share: graph files, and the step as XNNPACK likes it."""
