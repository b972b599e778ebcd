"""What a model is: a manifest and weights, verified on every open and registered in the BentoML store."""
