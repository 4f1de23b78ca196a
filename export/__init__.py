"""From a checkpoint to graphs: the step contract as torch modules, lowered into a bundle."""
