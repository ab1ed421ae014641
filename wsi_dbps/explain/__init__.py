"""Questions to ask of a trained model: localisation, faithfulness, selection atlas, colour baseline."""
