"""How good a model is: mergeable metrics with intervals over privacy units."""
