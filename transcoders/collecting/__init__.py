"""From text to activation stores: documents, contexts, the model's forward pass, writing."""
