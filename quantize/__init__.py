"""From a bundle to a smaller bundle: recipes, and the passes that apply them to its graphs."""
